"""From a module to its canonical graph."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from torch import fx, nn

from qat.capture.canonical.attention import add_dropout_of_weights, decompose_attention
from qat.capture.canonical.canonical_form import batch_norms_of_modules, make_canonical
from qat.capture.canonical.dropout_rates import WithoutDropout, rates_in_graph
from qat.capture.canonical.products import products_as_layers, shapes_in_run, shapes_of_export
from qat.capture.canonical.recurrent import recurrent_as_modules
from qat.capture.errors import CaptureError, StatefulError
from qat.capture.exported.export import exported
from qat.capture.exported.following import follow_the_model
from qat.capture.graphs.arguments import call_arguments, copies, take_all_arguments
from qat.capture.graphs.call_format import CallFormat
from qat.capture.graphs.compiled import CompiledGraph
from qat.capture.graphs.in_place import overwritten_and_read_again
from qat.capture.install import install, installed_graph
from qat.capture.limits import unfit_for_fx
from qat.capture.state.stored import remember
from qat.capture.traced.around_forward import around_forward
from qat.capture.traced.hooks import drop_traced_hooks, watched_hooks, without_traced_hooks
from qat.capture.traced.traces import Traces
from qat.capture.training.in_training import InTraining, computes_the_same, not_repeated, seen_in_training
from qat.capture.training.only_in_training import add_only_in_training, drop_only_in_training, result_of
from qat.capture.training.statistics import add_updates, updated_in_training
from qat.contexts import training_mode


@dataclass
class Captured:
    """The canonical graph of a model.

    Attributes:
        graph: its nodes name submodules and parameters of the model.
        way: how it was captured.
        reason: why another way was not taken; "" if none was tried.
        form: how calls of forward become inputs of the graph; None: they are its inputs.
        exact: whether the graph computes to the bit what forward does; not with attention written as products.
        differs_in_training: a sentence to show if forward has operations in training that the graph lacks; otherwise "".
        only_in_training: names of layers that the graph runs in training alone.
    """

    graph: fx.Graph
    way: Literal["torch.fx", "torch.export"]
    reason: str = ""
    differs_in_training: str = ""
    form: CallFormat | None = None
    exact: bool = True
    only_in_training: list[str] = field(default_factory=list)

    def install(self, model: nn.Module) -> None:
        """Make the graph the forward of the model, in place."""
        install(model, self.graph, self.form)


def capture(model: nn.Module, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None) -> Captured:
    """The canonical graph of `model.forward`: from torch.fx, or, if that fails and inputs are given, from torch.export.

    Branches on `self.training` are followed as in evaluation. The model computes the same afterwards, but is changed in
    place: dropout and layers that forward calls as functions become submodules. If a submodule had to be turned into the
    layer that it computes, the graph is the model's forward from now on.

    Args:
        model: any module.
        args, kwargs: example inputs.

    Raises:
        CaptureError: forward depends on values, or takes arguments that a graph cannot hold.
    """
    if (installed := installed_graph(model)) is not None:
        return Captured(installed[0], "torch.fx" if installed[1] is None else "torch.export", form=installed[1])
    if why := around_forward(model, args, kwargs or {}):
        raise CaptureError(why)
    with suppress(NotImplementedError), training_mode(model, True):  # a module of torch.export has no train()
        pass  # it empties caches of what forward calculates from parameters
    with watched_hooks(model) as hooks:
        captured = _captured(model, args, kwargs or {})
    if drop_traced_hooks(model, captured.graph, hooks):
        captured.form = None if captured.form is None else replace(captured.form, others_allowed=False)
        captured.install(model)
    return captured


def _captured(model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Captured:
    given = _arguments(model, args, kwargs) if args or kwargs else None
    traces, failed = Traces(model, given), ""
    if given is not None and (unfit := unfit_for_fx(traces, given)):
        try:
            return _from_export(model, args, kwargs, CaptureError(unfit))
        except CaptureError as error:
            failed = str(error)
        traces = Traces(model, given)  # the attempt may have changed it
    try:
        return replace(_from_fx(traces, lambda graph: graph(model, *copies(args), **copies(kwargs))), reason=failed)
    except StatefulError:
        raise
    except CaptureError as reason:
        if given is None:
            raise
        return _from_export(model, args, kwargs, reason)


def _arguments(model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    try:
        return call_arguments(inspect.signature(model.forward), args, kwargs)
    except TypeError as error:
        raise CaptureError(f"{type(model).__name__} cannot be called with its example inputs: {error}") from error


def _from_export(model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], reason: CaptureError) -> Captured:
    try:
        graph, form = exported(model, args, kwargs)
    except Exception as error:  # torch.export may raise anything for a user's forward
        said = str(error).strip().splitlines() or [type(error).__name__]
        raise CaptureError(f"{reason}; torch.export: {said[0]}") from error
    arguments = call_arguments(inspect.signature(model.forward), args, kwargs)

    def call() -> Any:
        return model(*copies(args), **copies(kwargs))

    forward = seen_in_training(model, call)
    rates = None if forward is None else forward.rates
    recurrent_as_modules(model, graph)
    add_dropout_of_weights(model, graph)
    in_products = decompose_attention(model, graph, rates)
    in_layers = products_as_layers(model, graph, lambda: shapes_of_export(graph))
    recast = make_canonical(model, graph, None, rates)
    follow_the_model(model, graph)
    repeated = _refuse_what_stops(
        model, forward, lambda: CompiledGraph(graph).forward(model, *(form.flat(arguments) or ()))
    )
    differs = _differs(model) if _is_seen_to_differ(model, call, forward, repeated) else ""
    captured = Captured(
        graph,
        "torch.export",
        str(reason),
        differs,
        replace(form, others_allowed=not recast),
        not (in_products or in_layers),
    )
    if recast:
        captured.install(model)
    return captured


def _from_fx(traces: Traces, called: Callable[[Callable[..., Any]], Any]) -> Captured:
    """called: calls a function of the model with the arguments."""
    model, given = traces.model, traces.given
    signature = inspect.signature(model.forward)
    optional = [n for n in given or () if n in (p := signature.parameters) and p[n].default is not p[n].empty]
    if optional:
        raise CaptureError(f"{type(model).__name__} is called with {optional[0]!r}, which has a default")
    traces.keep_dropout()
    (graph, stored), (training, of_training) = traces.in_evaluation, traces.in_training or (None, {})
    updates = _updates(model, graph, training)
    same = updates or traces.are_the_same
    take_all_arguments(graph, signature, given or {})
    alone = None
    if training is not None and given and not same:
        alone = add_only_in_training(model, graph, training, stored, of_training)

    def repeat() -> Any:
        return result_of(model, called(CompiledGraph(graph).forward))

    def check() -> None:
        forward = seen_in_training(model, lambda: called(type(model).__call__))
        norms = frozenset(
            batch_norms_of_modules(model, graph, training).values()
        )  # BatchNorms that will be modules again
        _refuse_what_stops(model, forward, repeat, norms, [*stored, *of_training])

    if given and (updates or not same):
        check()
    remember(model, graph, stored)
    rates = rates_in_graph(training)
    in_products = decompose_attention(model, graph, rates)
    in_layers = products_as_layers(model, graph, lambda: shapes_in_run(model, graph, given))
    recast = make_canonical(model, graph, training, rates)
    if alone is not None and not _is_repeated(model, lambda: called(type(model).__call__), repeat):
        drop_only_in_training(model, graph)
        alone = None
        check()
    if recast:
        install(model, graph)
    hint = "" if given else " With example_inputs, auxiliary heads are kept."
    differs = "" if same or alone is not None else _differs(model) + hint
    return Captured(graph, "torch.fx", "", differs, exact=not (in_products or in_layers), only_in_training=alone or [])


def _is_repeated(model: nn.Module, forward: Callable[[], Any], graph: Callable[[], Any]) -> bool:
    """Whether the graph computes in training what forward does, if dropout is left out."""
    with WithoutDropout(), without_traced_hooks(model):
        results = [seen_in_training(model, call) for call in (forward, graph)]
    return None not in results and computes_the_same(*results)  # type: ignore[arg-type]


def can_be_captured(model: nn.Module) -> bool:
    """Whether torch.fx can trace forward. The model is not changed."""
    try:
        return bool(Traces(model).in_evaluation)
    except CaptureError:
        return False


def _updates(model: nn.Module, graph: fx.Graph, training: fx.Graph | None) -> bool:
    """Whether the graph updates moving statistics from now on.

    Raises:
        CaptureError: the graph reads what it has overwritten.
        StatefulError: it would no longer update some statistics.
    """
    if (changed := overwritten_and_read_again(model, graph)) is not None:
        raise CaptureError(f"{type(model).__name__} overwrites {changed.name!r} in place and reads it again")
    if training is None or not (lost := updated_in_training(model, graph, training)):
        return False
    if not add_updates(model, graph, training):
        raise StatefulError(f"{type(model).__name__} updates {', '.join(sorted(lost))} in training")
    return True


def _refuse_what_stops(
    model: nn.Module,
    forward: InTraining | None,
    graph: Callable[[], Any],
    norms: frozenset[str] = frozenset(),
    stored: Iterable[str] = (),
) -> InTraining | None:
    """Refuse a graph that would no longer update counters and moving statistics. Returns what it does in training.

    Args:
        forward: what the model's forward does in training.
        norms: names of modules whose statistics do not count.
        stored: names of attributes that the graph will store, too.
    """
    with without_traced_hooks(model):
        repeated = None if forward is None else seen_in_training(model, graph)
    if forward is not None and repeated is not None and (lost := not_repeated(forward, repeated, norms, stored)):
        raise StatefulError(f"{type(model).__name__}: {lost}")
    return repeated


def _is_seen_to_differ(
    model: nn.Module, call: Callable[[], Any], forward: InTraining | None, graph: InTraining | None
) -> bool:
    """Whether forward computes something else than its graph in training, which random numbers alone do not explain."""
    if forward is None or graph is None or computes_the_same(forward, graph):
        return False
    if forward.drawn != graph.drawn:
        return True
    again = seen_in_training(model, call, seed=1)
    return again is not None and computes_the_same(forward, again)


def _differs(model: nn.Module) -> str:
    return (
        f"{type(model).__name__} branches on self.training (auxiliary heads, noise): prepared, it computes in training what it "
        "computes in evaluation."
    )
