"""The graphs that torch.fx traces of a model in evaluation and in training."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property

from torch import fx, nn

from qat.capture.canonical.canonical_form import DROPOUTS
from qat.capture.errors import CaptureError, StatefulError
from qat.capture.graphs.arguments import Arguments
from qat.capture.state.attributes import Attributes, NotInGraphError
from qat.capture.state.stored import Stored
from qat.capture.traced.conditional_dropout import add_dropout
from qat.capture.traced.operations import operations
from qat.capture.traced.tracer import traced


class Traces:
    """The graphs of a model called with these arguments, traced at most once in each mode."""

    def __init__(self, model: nn.Module, given: Arguments | None = None) -> None:
        self.model, self.given = model, given

    @cached_property
    def in_evaluation(self) -> tuple[fx.Graph, dict[str, Stored]]:
        """The graph in evaluation, and what it stores on modules."""
        return _traced(self.model, self.given, training=False)

    @cached_property
    def in_training(self) -> tuple[fx.Graph, dict[str, Stored]] | None:
        """The graph in training and what it stores; None if only evaluation can be traced."""
        try:
            return _traced(self.model, self.given, training=True)
        except StatefulError:
            raise
        except CaptureError:
            return None

    def keep_dropout(self) -> None:
        """Add the dropout that forward calls in training alone to the graph of evaluation."""
        if self.in_training is not None:
            add_dropout(self.model, self.in_evaluation[0], self.in_training[0])

    @property
    def are_the_same(self) -> bool:
        """Whether forward computes, returns and stores the same in both modes."""
        if self.in_training is None:
            return False
        (graph, stored), (training, of_training) = self.in_evaluation, self.in_training
        dropouts = [sum(node.target in DROPOUTS for node in g.nodes) for g in (graph, training)]
        same = operations(graph.nodes) == operations(training.nodes) and dropouts[0] == dropouts[1]
        return same and stored.keys() == of_training.keys()


def _traced(model: nn.Module, given: Arguments | None, training: bool) -> tuple[fx.Graph, dict[str, Stored]]:
    """The graph of forward in one mode, and what it stores on its modules. Raises CaptureError. The model is restored.

    given: the arguments of a call; None: it takes those without a default.
    """
    attributes = Attributes(model)
    try:
        try:
            graph = traced(model, training, given)
            if counting := _counting(model, attributes, lambda: traced(model, training, given)):
                attributes.restore(keep_new=False)
                raise NotInGraphError(counting)
            if filled := attributes.filled_lists():
                attributes.mark(filled)
                graph = traced(model, training, given)
        finally:
            stored = attributes.restore()
    except NotInGraphError as error:
        raise StatefulError(f"{type(model).__name__}: {error}") from error
    except Exception as error:  # a user's forward may raise anything when it gets a proxy
        said = str(error).strip().splitlines() or [type(error).__name__]
        raise CaptureError(f"{type(model).__name__} cannot be traced: {said[0]}") from error
    alive = set(graph.nodes)
    return graph, {path: value for path, value in stored.items() if alive.issuperset(value.nodes)}


def _counting(model: nn.Module, before: Attributes, trace: Callable[[], object]) -> list[str]:
    """Names of the attributes that forward changes again in another call, as a counter in a dict; a cache is filled once."""
    filled = before.filled_with_numbers()
    if not filled:
        return []
    once = Attributes(model)
    trace()
    return once.growing(filled)
