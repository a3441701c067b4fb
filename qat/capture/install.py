"""From a graph back into the module that it came from."""

from __future__ import annotations

import copy

from torch import fx, nn

from qat.capture.compiled import CompiledGraph
from qat.nn import with_class


def install(model: nn.Module, graph: fx.Graph) -> None:
    """Make `graph` the forward of `model`, in place: same object, same parameters, same other methods."""
    if _installing_class(model) is type(model):
        model.__class__ = type(model).__bases__[0]
    with_class(model, _with_forward, CompiledGraph(copy.deepcopy(graph)))
    if getattr(vars(model).get("forward"), "__self__", None) is model:  # Lightning's DDP leaves a bound one behind
        del vars(model)["forward"]


def installed_graph(model: nn.Module) -> fx.Graph | None:
    """A copy of the graph that `install` made the forward of this very module; None if its forward is its own."""
    cls = _installing_class(model)
    return None if cls is None else copy.deepcopy(cls.compiled_graph.graph)  # type: ignore[attr-defined]


def _installing_class(model: nn.Module) -> type[nn.Module] | None:
    return next((c for c in type(model).__mro__ if "compiled_graph" in vars(c)), None)


def _with_forward(base: type[nn.Module], compiled: CompiledGraph) -> type[nn.Module]:
    members = {"forward": compiled.forward, "__module__": base.__module__, "compiled_graph": compiled}
    return type(base.__name__, (base,), {**members, "code": compiled.code})
