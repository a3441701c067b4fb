"""Whether a graph of torch.export holds for other sizes than those of its example: both are computed with them and compared."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, fx, nn

from qat.capture.graphs.arguments import Arguments, called_by_name, copies
from qat.capture.state.attributes import Attributes
from qat.contexts import training_mode
from qat.operations import value_of
from qat.torch_private import tree_flatten, tree_leaves, tree_unflatten

Shapes = tuple[tuple[int, ...], ...]
Holds = Callable[[Shapes], bool]
"""Whether the graph computes for inputs of these shapes what forward does, or forward takes no such inputs."""

MAX_TRIALS = 4
"""For one condition."""
TOLERANCE = 1e-3
"""Of the largest value: how far orders of summation may differ."""


def holds_for(model: nn.Module, graph: fx.Graph, arguments: Arguments) -> Holds:
    """How to find out whether the graph holds for other sizes.

    Args:
        model: is called with the arguments by name, in evaluation mode.
        graph: of `model`, with one input for each tensor in the arguments.
        arguments: those that the graph was made with.
    """
    leaves, spec = tree_flatten(dict(arguments))

    def computed(function: Callable[[list[Any]], Any], shapes: Shapes) -> list[Tensor]:
        left = iter(shapes)
        given = [resized(leaf, next(left)) if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        attributes = Attributes(model)
        try:
            with training_mode(model, False), torch.no_grad(), torch.random.fork_rng(devices=()):
                torch.manual_seed(0)
                return [leaf for leaf in tree_leaves(function(given)) if isinstance(leaf, Tensor)]
        finally:
            attributes.restore(keep_new=False)

    def forward(given: list[Any]) -> Any:
        with called_by_name(model, [*arguments], {}):
            return model(*tree_unflatten(copies(given), spec).values())

    def of_graph(given: list[Any]) -> Any:
        return fx.Interpreter(model, graph=graph).run(*(x for x in copies(given) if isinstance(x, Tensor)))

    @functools.cache
    def holds(shapes: Shapes) -> bool:
        try:
            expected = computed(forward, shapes)
        except Exception:  # a user's forward may raise anything for sizes that it does not take
            return True
        try:
            found = computed(of_graph, shapes)
        except Exception:  # and a graph that followed other sizes, too
            return False
        return len(found) == len(expected) and all(map(_alike, found, expected))

    return holds


def trials_without(term: Any, tensors: tuple[Tensor, ...], conditions: Iterable[Any]) -> Iterator[tuple[Shapes, ...]]:
    """Shapes of tensors near those of the example, for which a condition is not met.

    Each trial has one or two: with another size of one axis, and of all axes that are equal by a condition; and with other
    sizes of the same axes of all tensors, such as the batch. The graph holds if it does for one of them: a mask of one sample
    beside inputs of two is no call that anybody makes.

    Args:
        term: the condition, as `qat.operations.value_of` takes it.
        tensors: the tensors of the example.
        conditions: all of the graph.
    """
    equal = [set(c[1:]) for c in conditions if c[0] == "==" and all(_is_size(part) for part in c[1:])]
    shapes = tuple(tuple(x.shape) for x in tensors)
    if not value_of(term, tensors):
        yield (shapes,)
    sizes = [size for size in _sizes_of(term) if shapes[size[1]][size[2]]]
    numbers = {1, *_numbers_of(term), *(shapes[t][axis] for _, t, axis in sizes)}
    for size in sizes:
        _, t, axis = size
        alike = {size}
        for _ in equal:  # as often as there can be links in a chain
            alike.update(other for pair in equal if alike & pair for other in pair)
        batch = {("size", i, axis) for i, x in enumerate(tensors) if x.ndim > axis and x.shape[axis] == shapes[t][axis]}
        for number in sorted({n for m in numbers for n in (m, 2 * m) if n}):
            trial = tuple(_with_sizes(shapes, axes, number) for axes in (alike, alike | batch))
            if not any(_is_met(term, changed) for changed in trial):
                yield trial


def _with_sizes(shapes: Shapes, axes: set[Any], number: int) -> Shapes:
    return tuple(tuple(number if ("size", t, i) in axes else n for i, n in enumerate(x)) for t, x in enumerate(shapes))


def _is_size(part: Any) -> bool:
    return isinstance(part, tuple) and part[0] == "size"


def _is_met(term: Any, shapes: Shapes) -> bool:
    try:
        return bool(value_of(term, tuple(torch.empty(shape, device="meta") for shape in shapes)))
    except ZeroDivisionError:  # a remainder by a size less 1
        return True


def resized(x: Tensor, shape: Iterable[int]) -> Tensor:
    """The tensor with other sizes: cut, or repeated from its beginning."""
    for axis, size in enumerate(shape):
        if size != x.shape[axis]:
            x = x.index_select(axis, torch.arange(size, device=x.device) % x.shape[axis])
    return x


def _sizes_of(term: Any) -> list[tuple[str, int, int]]:
    """The sizes that a term reads, each once."""
    if isinstance(term, int) or term[0] == "ndim":
        return []
    return [term] if term[0] == "size" else list(dict.fromkeys(size for part in term[1:] for size in _sizes_of(part)))


def _numbers_of(term: Any) -> list[int]:
    if isinstance(term, int):
        return [abs(term)]
    return [] if term[0] in ("size", "ndim") else [number for part in term[1:] for number in _numbers_of(part)]


def _alike(found: Tensor, expected: Tensor) -> bool:
    if found.shape != expected.shape:
        return False
    largest = float(expected.abs().max()) if expected.numel() else 0.0
    if not (expected.is_floating_point() and math.isfinite(largest)):
        return torch.equal(found, expected) or not math.isfinite(largest)
    return torch.allclose(found, expected, rtol=TOLERANCE, atol=TOLERANCE * largest)
