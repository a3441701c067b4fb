"""From a module to its graph (torch.fx), and back into the same module."""

from __future__ import annotations

import inspect
from typing import Any

import torch.nn.functional as F
from torch import fx, nn

from qat.nn import is_quantized
from qat.quantizers import Quantizer


class CannotCapture(Exception):
    """Why a module has no graph; the message is one sentence."""


class _Tracer(fx.Tracer):
    """Sees layers and quantizers as leaves, whatever module they come from."""

    def is_leaf_module(self, m: nn.Module, qualified_name: str) -> bool:
        return isinstance(m, Quantizer) or is_quantized(m) or super().is_leaf_module(m, qualified_name)


def capture(model: nn.Module) -> fx.Graph:
    """The graph of `model.forward`, whose nodes call submodules by name.

    Branches on `self.training` are followed as in evaluation; functional dropout, which does so inside, becomes a module.

    Raises:
        CannotCapture: forward depends on values, or takes arguments that a graph cannot hold.
    """
    training = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with _required_arguments_only(model):
            graph = _Tracer().trace(model)
        graph.lint()
    except Exception as error:  # whatever a user's forward raises when it meets a proxy
        raise CannotCapture(f"{type(model).__name__} cannot be traced: {str(error).splitlines()[0]}") from error
    finally:
        for module, was in training.items():
            module.training = was
    _dropout_as_module(model, graph)
    return graph


def install(model: nn.Module, graph: fx.Graph) -> None:
    """Make `graph` the forward of `model`, in place: same object, same parameters, same other methods."""
    compiled = fx.GraphModule(model, graph)
    members = {"forward": type(compiled).forward, "__module__": type(model).__module__, "code": compiled.code}
    model.__class__ = type(type(model).__name__, (type(model),), members)


class _required_arguments_only:
    """Inside the `with`, forward takes only the arguments that have no default: a proxy would hide an `x is None`."""

    def __init__(self, model: nn.Module) -> None:
        self.model, self.cls = model, type(model)

    def __enter__(self) -> None:
        parameters = list(inspect.signature(self.model.forward).parameters.values())
        if any(p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD) for p in parameters):
            raise TypeError("forward takes *args or **kwargs")
        names = [p.name for p in parameters if p.default is p.empty]
        if len(names) < len(parameters):
            scope: dict[str, Any] = {"original": self.cls.forward}
            exec(f"def forward(self, {', '.join(names)}): return original(self, {', '.join(names)})", scope)
            self.model.__class__ = type(self.cls.__name__, (self.cls,), {"forward": scope["forward"]})

    def __exit__(self, *error: object) -> None:
        self.model.__class__ = self.cls


def _dropout_as_module(model: nn.Module, graph: fx.Graph) -> None:
    """F.dropout(x, p, self.training) has frozen its flag; nn.Dropout follows train() and eval()."""
    for i, node in enumerate(n for n in graph.nodes if n.op == "call_function" and n.target is F.dropout):
        p = node.args[1] if len(node.args) > 1 else node.kwargs.get("p", 0.5)
        name = f"dropout_of_graph_{i}"
        model.add_module(name, nn.Dropout(p))
        with graph.inserting_before(node):
            replacement = graph.call_module(name, (node.args[0],))
        node.replace_all_uses_with(replacement)
        graph.erase_node(node)
