"""What torch.fx sees of a model in evaluation and in training."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import cached_property

import torch.nn.functional as F
from torch import fx, nn

from qat.capture.canonical.canonical_form import ADDED_DROPOUT, DROPOUTS
from qat.capture.errors import CaptureError, StatefulError
from qat.capture.graphs.arguments import Arguments
from qat.capture.state.attributes import Attributes, NotInGraphError
from qat.capture.state.stored import Stored
from qat.capture.traced.tracer import traced


class Traces:
    """What torch.fx sees of a model called with these arguments, traced once in each mode."""

    def __init__(self, model: nn.Module, given: Arguments | None = None) -> None:
        self.model, self.given = model, given

    @cached_property
    def in_evaluation(self) -> tuple[fx.Graph, dict[str, Stored]]:
        return _traced(self.model, self.given, training=False)

    @cached_property
    def in_training(self) -> tuple[fx.Graph, dict[str, Stored]] | None:
        """None if only evaluation can be traced."""
        try:
            return _traced(self.model, self.given, training=True)
        except StatefulError:
            raise
        except CaptureError:
            return None

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


def operations(nodes: Iterable[fx.Node]) -> list[str]:
    """The operations of nodes in order, and which of them are returned, without dropout and BatchNorm's flags and counters,
    which modules decide."""

    def numbers(node: fx.Node) -> list[float]:
        values = () if node.target is F.batch_norm else (*node.args, *node.kwargs.values())
        return [value for value in values if isinstance(value, int | float)]

    def is_dropout(node: fx.Node) -> bool:
        return node.target in DROPOUTS or str(node.target).startswith(ADDED_DROPOUT)

    counted = [
        node
        for node in nodes
        if node.op != "get_attr"
        and not is_dropout(node)
        and not any("num_batches_tracked" in str(n.target) for n in node.all_input_nodes)
    ]
    positions = {node: i for i, node in enumerate(counted)}

    def returned(node: fx.Node) -> int | None:
        while is_dropout(node):
            node = node.all_input_nodes[0]
        return positions.get(node)

    return [
        f"{node.op} {node.target} {len(node.all_input_nodes)} {numbers(node)}"
        + (f" {[returned(n) for n in node.all_input_nodes]}" if node.op == "output" else "")
        for node in counted
    ]
