"""From a graph back into the module that it came from."""

from __future__ import annotations

import copy
import functools
import inspect
from collections.abc import Mapping
from typing import Any

from torch import fx, nn

from qat.capture.graphs.arguments import call_arguments
from qat.capture.graphs.call_format import CallFormat
from qat.capture.graphs.compiled import CompiledGraph
from qat.capture.training.only_in_training import has_only_in_training, result_of
from qat.nn import with_class
from qat.operations import without_labels


def install(model: nn.Module, graph: fx.Graph, form: CallFormat | None = None) -> None:
    """Make `graph` the forward of `model`, in place: same object, same parameters, same other methods.

    form: how calls become inputs of the graph; None: the arguments are its inputs. Calls that do not fit (a language model's
    `generate` passes a cache) get the forward that was there before, which calls the same layers: their weights are quantized,
    tensors between layers are not.
    """
    if _installing_class(model) is type(model):
        model.__class__ = type(model).__bases__[0]
    with_class(model, _with_forward, CompiledGraph(copy.deepcopy(graph)), form)
    if getattr(vars(model).get("forward"), "__self__", None) is model:  # Lightning's DDP leaves a bound one behind
        del vars(model)["forward"]


def installed_graph(model: nn.Module) -> tuple[fx.Graph, CallFormat | None] | None:
    """A copy of the graph that `install` made the forward of this very module; None if its forward is its own."""
    cls: Any = _installing_class(model)
    return None if cls is None else (copy.deepcopy(cls.compiled_graph.graph), cls.call_format)


def serves_call(model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
    """Whether this call of `model` runs its installed graph, if it has one, and not the forward that was there before."""
    cls: Any = _installing_class(model)
    form: CallFormat | None = None if cls is None else cls.call_format
    if form is None:
        return True
    arguments = call_arguments(inspect.signature(model.forward), args, kwargs)
    return any(f is not None and f.flat(arguments) is not None for f in (form, form.without_labels))


def graph_inputs(
    model: nn.Module, graph: fx.Graph, form: CallFormat | None, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> list[Any] | None:
    """The values of the inputs of the graph of `model` for this call, in order; None if the graph does not serve the call."""
    arguments = call_arguments(inspect.signature(model.forward), args, kwargs)
    if form is not None:
        return form.flat(arguments)
    inputs = [node for node in graph.nodes if node.op == "placeholder"]
    return [arguments[name] if (name := str(node.target)) in arguments else node.args[0] for node in inputs]


def implied_arguments(model: nn.Module) -> dict[str, Any]:
    """Arguments that calls of `model` have even if they do not write them, because its installed graph was made with them."""
    cls: Any = _installing_class(model)
    form: CallFormat | None = None if cls is None else cls.call_format
    return {} if form is None else dict(form.implied)


def _installing_class(model: nn.Module) -> type[nn.Module] | None:
    return next((c for c in type(model).__mro__ if "compiled_graph" in vars(c)), None)


def _with_forward(base: type[nn.Module], compiled: CompiledGraph, form: CallFormat | None) -> type[nn.Module]:
    forward = _returning(compiled) if form is None else _formatted(base, compiled, form)
    members = {"forward": forward, "__module__": base.__module__, "compiled_graph": compiled, "call_format": form}
    return type(base.__name__, (base,), {**members, "code": compiled.code})


def _returning(compiled: CompiledGraph) -> Any:
    """The graph as forward, which returns something else in training if the graph says so."""
    if not has_only_in_training(compiled.graph):
        return compiled.forward

    @functools.wraps(compiled.forward)
    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        return result_of(self, compiled.forward(self, *args, **kwargs))

    return forward


def _formatted(base: Any, compiled: CompiledGraph, form: CallFormat) -> Any:
    original = base.forward
    parameters = list(inspect.signature(original).parameters.values())[1:]
    signature = inspect.Signature(parameters)

    @functools.cache
    def deployed() -> CompiledGraph:
        return CompiledGraph(without_labels(compiled.graph) or compiled.graph)

    @functools.wraps(original)
    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        inputs = form.flat(call_arguments(signature, args, kwargs))
        if inputs is not None:
            return form.result(compiled.forward(self, *inputs))
        if form.without_labels is not None:
            inputs = form.without_labels.flat(call_arguments(signature, args, kwargs))
            if inputs is not None:
                return form.without_labels.result(deployed().forward(self, *inputs))
        if not form.others_allowed:
            raise ValueError(
                f"{type(self).__name__} is called with other arguments than those of its example inputs "
                f"({', '.join(form.names)}), and layers that pad or mask on their own are part of its graph alone: "
                "prepare it with example_inputs of this call."
            )
        return original(self, *args, **kwargs)

    return forward
