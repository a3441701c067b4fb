"""From a module to its graph (torch.fx), and from a graph back into the same module."""

from __future__ import annotations

import inspect
import operator
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch.nn.functional as F
from torch import Tensor, fx, nn

from qat.contexts import training_mode
from qat.nn import is_quantized
from qat.quantizers import Quantizer
from qat.torch_private import BatchNorm
from qat.transform.operation_kind import is_identity_in_evaluation

_ADDED_DROPOUT = "dropout_of_graph_"
"""The beginning of the names of dropout modules that `capture` adds."""


class CaptureError(Exception):
    """A module has no graph. The message is one sentence that says why."""


class _Tracer(fx.Tracer):
    """Treats layers and quantizers as leaves, whatever module they come from."""

    def is_leaf_module(self, m: nn.Module, qualified_name: str) -> bool:
        # BatchNorm, because Lightning reverts SyncBatchNorm to a class of its own; dropout, because tracing would freeze it.
        is_leaf = isinstance(m, Quantizer | BatchNorm) or is_quantized(m) or is_identity_in_evaluation(m)
        return is_leaf or super().is_leaf_module(m, qualified_name)


def capture(model: nn.Module) -> fx.Graph:
    """The graph of `model.forward`, whose nodes call submodules by name.

    Branches on `self.training` are followed as in evaluation. Functional dropout, which depends on it, becomes a module.

    Raises:
        CaptureError: forward depends on values, or takes arguments that a graph cannot hold.
    """
    graph = _traced(model, training=False)
    _refuse_rereading(model, graph)
    _dropout_as_module(model, graph)
    return graph


def differs_in_training(model: nn.Module, graph: fx.Graph) -> str:
    """A sentence to show if forward has other operations in training than in `graph`, the graph of evaluation; else ""."""
    try:
        evaluation, training = _operations(graph), _operations(_traced(model, training=True))
    except CaptureError:
        evaluation, training = [], [""]
    if evaluation == training:
        return ""
    return (
        f"{type(model).__name__} branches on self.training (auxiliary heads, noise): prepared, it computes in training what it "
        "computes in evaluation."
    )


def _traced(model: nn.Module, training: bool) -> fx.Graph:
    """The graph of forward in one mode. Raises CaptureError. Modes are restored."""
    try:
        with training_mode(model, training), _without_optional_arguments(model):
            graph = _Tracer().trace(model)
        graph.lint()
    except Exception as error:  # a user's forward may raise anything when it gets a proxy
        raise CaptureError(f"{type(model).__name__} cannot be traced: {str(error).splitlines()[0]}") from error
    return graph


def _operations(graph: fx.Graph) -> list[str]:
    """The operations of a graph in order, without dropout, which is a module or becomes one."""
    return [
        f"{node.op} {'' if node.op == 'get_attr' else node.target} {len(node.all_input_nodes)} "
        f"{[a for a in (*node.args, *node.kwargs.values()) if isinstance(a, int | float)]}"
        for node in graph.nodes
        if node.target not in _DROPOUTS and not str(node.target).startswith(_ADDED_DROPOUT)
    ]


def works_in_place(model: nn.Module, node: fx.Node) -> bool:
    """Whether `node` overwrites its first argument."""
    if node.op == "call_module":
        return bool(getattr(model.get_submodule(str(node.target)), "inplace", False))
    if node.op == "call_method":
        name = str(node.target)
        return name.endswith("_") and callable(getattr(Tensor, name.removesuffix("_"), None))
    return node.target is operator.iadd or bool(node.kwargs.get("inplace"))


def make_out_of_place(model: nn.Module, node: fx.Node) -> None:
    """Make an operation that overwrites its first argument write a new tensor instead."""
    if node.op == "call_module":
        model.get_submodule(str(node.target)).inplace = False  # type: ignore[assignment]
    elif node.op == "call_method":
        node.target = str(node.target).removesuffix("_")
    elif node.target is operator.iadd:
        node.target = operator.add
    else:
        node.kwargs = {**node.kwargs, "inplace": False}


def install(model: nn.Module, graph: fx.Graph) -> None:
    """Make `graph` the forward of `model`, in place: same object, same parameters, same other methods."""
    compiled = fx.GraphModule(model, graph)
    members = {"forward": type(compiled).forward, "__module__": type(model).__module__, "code": compiled.code}
    model.__class__ = type(type(model).__name__, (type(model),), members)
    if getattr(vars(model).get("forward"), "__self__", None) is model:  # Lightning's DDP leaves a bound one behind
        del vars(model)["forward"]


@contextmanager
def _without_optional_arguments(model: nn.Module) -> Iterator[None]:
    """Inside the `with`, forward takes only the arguments that have no default: a proxy would hide an `x is None`."""
    cls = type(model)
    parameters = list(inspect.signature(model.forward).parameters.values())
    if any(p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD) for p in parameters):
        raise TypeError("forward takes *args or **kwargs")
    names = [p.name for p in parameters if p.default is p.empty]
    if not names:
        raise TypeError("all arguments of forward are optional")
    if len(names) < len(parameters):
        scope: dict[str, Any] = {"original": cls.forward}
        exec(f"def forward(self, {', '.join(names)}): return original(self, {', '.join(names)})", scope)
        model.__class__ = type(cls.__name__, (cls,), {"forward": scope["forward"]})
    try:
        yield
    finally:
        model.__class__ = cls


def _refuse_rereading(model: nn.Module, graph: fx.Graph) -> None:
    """Refuse graphs that read a tensor after it was overwritten: sites sit between a tensor and its readers, and copy it."""
    order = {node: i for i, node in enumerate(graph.nodes)}
    for node in graph.nodes:
        if node.op != "output" and node.all_input_nodes and works_in_place(model, node):
            changed = node.all_input_nodes[0]
            if any(order[user] > order[node] for user in changed.users):
                raise CaptureError(f"{type(model).__name__} overwrites {changed.name!r} in place and reads it again")


_DROPOUTS: dict[Any, Callable[[float], nn.Module]] = {
    F.dropout: nn.Dropout,
    F.dropout1d: nn.Dropout1d,
    F.dropout2d: nn.Dropout2d,
}


def _dropout_as_module(model: nn.Module, graph: fx.Graph) -> None:
    """Replace F.dropout(x, p, self.training), whose flag tracing froze, by nn.Dropout, which follows train() and eval()."""
    found = [n for n in graph.nodes if n.op == "call_function" and n.target in _DROPOUTS]
    for i, node in enumerate(n for n in found if n.kwargs.get("training") is False):
        name = f"{_ADDED_DROPOUT}{i}"
        model.add_module(name, _DROPOUTS[node.target](node.kwargs["p"]).train(model.training))
        with graph.inserting_before(node):
            replacement = graph.call_module(name, (node.args[0],))
        node.replace_all_uses_with(replacement)
        graph.erase_node(node)
