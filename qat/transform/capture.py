"""From a module to its graph (torch.fx), and back into the same module."""

from __future__ import annotations

import inspect
import operator
from collections.abc import Callable
from typing import Any

import torch.nn.functional as F
from torch import Tensor, fx, nn

from qat.contexts import training_mode
from qat.nn import is_quantized
from qat.quantizers import Quantizer
from qat.torch_private import BatchNorm
from qat.transform.operation_kind import is_identity_in_evaluation

ADDED = "dropout_of_graph_"
"""How the names of modules that a graph got begin."""


class CaptureError(Exception):
    """Why a module has no graph; the message is one sentence."""


class _Tracer(fx.Tracer):
    """Sees layers and quantizers as leaves, whatever module they come from."""

    def is_leaf_module(self, m: nn.Module, qualified_name: str) -> bool:
        # SyncBatchNorm comes back as a class of Lightning; what differs between training and evaluation would be frozen
        own = isinstance(m, Quantizer | BatchNorm) or is_quantized(m) or is_identity_in_evaluation(m)
        return own or super().is_leaf_module(m, qualified_name)


def capture(model: nn.Module) -> fx.Graph:
    """The graph of `model.forward`, whose nodes call submodules by name.

    Branches on `self.training` are followed as in evaluation; functional dropout, which does so inside, becomes a module.

    Raises:
        CaptureError: forward depends on values, or takes arguments that a graph cannot hold.
    """
    graph = _traced(model, training=False)
    _refuse_rereading(model, graph)
    _dropout_as_module(model, graph)
    return graph


def differs_in_training(model: nn.Module, graph: fx.Graph) -> str:
    """A sentence for people, if forward has other operations in training than in `graph`, which is of evaluation; else ""."""
    try:
        ours, theirs = _operations(graph), _operations(_traced(model, training=True))
    except CaptureError:
        ours, theirs = [], [""]
    if ours == theirs:
        return ""
    return (
        f"{type(model).__name__} branches on self.training (auxiliary heads, noise): prepared, it computes in training what it "
        "computes in evaluation."
    )


def _traced(model: nn.Module, training: bool) -> fx.Graph:
    """Raises CaptureError. Modes are restored."""
    try:
        with training_mode(model, training), _without_optional_arguments(model):
            graph = _Tracer().trace(model)
        graph.lint()
    except Exception as error:  # whatever a user's forward raises when it meets a proxy
        raise CaptureError(f"{type(model).__name__} cannot be traced: {str(error).splitlines()[0]}") from error
    return graph


def _operations(graph: fx.Graph) -> list[str]:
    """What is calculated, in order, without dropout, which is a module or becomes one."""
    return [
        f"{node.op} {'' if node.op == 'get_attr' else node.target} {len(node.all_input_nodes)} "
        f"{[a for a in (*node.args, *node.kwargs.values()) if isinstance(a, int | float)]}"
        for node in graph.nodes
        if node.target not in _DROPOUTS and not str(node.target).startswith(ADDED)
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
    """The same operation with an output of its own."""
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


class _without_optional_arguments:
    """Inside the `with`, forward takes only the arguments that have no default: a proxy would hide an `x is None`."""

    def __init__(self, model: nn.Module) -> None:
        self.model, self.cls = model, type(model)

    def __enter__(self) -> None:
        parameters = list(inspect.signature(self.model.forward).parameters.values())
        if any(p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD) for p in parameters):
            raise TypeError("forward takes *args or **kwargs")
        names = [p.name for p in parameters if p.default is p.empty]
        if not names:
            raise TypeError("all arguments of forward are optional")
        if len(names) < len(parameters):
            scope: dict[str, Any] = {"original": self.cls.forward}
            exec(f"def forward(self, {', '.join(names)}): return original(self, {', '.join(names)})", scope)
            self.model.__class__ = type(self.cls.__name__, (self.cls,), {"forward": scope["forward"]})

    def __exit__(self, *error: object) -> None:
        self.model.__class__ = self.cls


def _refuse_rereading(model: nn.Module, graph: fx.Graph) -> None:
    """Sites stand between an operation and its readers, so none may see what a later operation wrote in place."""
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
    """F.dropout(x, p, self.training) has frozen its flag; nn.Dropout follows train() and eval()."""
    found = [n for n in graph.nodes if n.op == "call_function" and n.target in _DROPOUTS]
    for i, node in enumerate(n for n in found if n.kwargs.get("training") is False):
        name = f"{ADDED}{i}"
        model.add_module(name, _DROPOUTS[node.target](node.kwargs["p"]).train(model.training))
        with graph.inserting_before(node):
            replacement = graph.call_module(name, (node.args[0],))
        node.replace_all_uses_with(replacement)
        graph.erase_node(node)
