"""The Pareto front of harm against one cost, and the same bits in all layers beside it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from qat.report.results.allocation import BitsPoint
from qat.search.budget import format_name
from qat.search.solve import InfeasibleError, Option, Problem, lowest_cost, solve

MeasureHarm = Callable[[Sequence[Option]], float]


def pareto_points(
    problem: Problem,
    chosen: Sequence[Option],
    cost: str,
    widths: tuple[Sequence[int], Sequence[int]],
    points: int,
    measure: MeasureHarm,
) -> list[BitsPoint]:
    """The chosen bits, the best ones at evenly spaced budgets of one cost, and every uniform choice, sorted by their cost.

    Args:
        problem: with the harms.
        chosen: the allocation.
        cost: the name of the cost.
        widths: of weights and of inputs.
        points: number of budgets; 0: no points.
        measure: the harm of the whole network in these bits.
    """
    if not points:
        return []
    found: dict[tuple[object, ...], tuple[str, Sequence[Option]]] = {}
    for name, options in _uniform(problem, widths):
        found[_bits(options)] = (name, options)
    found.setdefault(_bits(chosen), ("mixed", chosen))
    for limit in np.linspace(lowest_cost(problem, cost), problem.highest(cost), points):
        try:
            options = solve(problem, {cost: float(limit) * (1 + 1e-9)})
        except InfeasibleError:  # links forbid it
            continue
        found.setdefault(_bits(options), ("mixed", options))
    made = [
        BitsPoint(
            name, name == "mixed", bits == _bits(chosen), problem.costs(options)[cost], sum(o.harm for o in options),
            measure(options),
        )
        for bits, (name, options) in found.items()
    ]  # fmt: skip
    return sorted(made, key=lambda point: (point.cost, point.predicted))


def _bits(options: Sequence[Option]) -> tuple[object, ...]:
    return tuple((option.weight, option.activation) for option in options)


def _uniform(problem: Problem, widths: tuple[Sequence[int], Sequence[int]]) -> list[tuple[str, list[Option]]]:
    """The choices with the same bits in all layers that have more than one option."""
    found = []
    for weight in widths[0]:
        for activation in widths[1] or (None,):
            options = [_option(choice.options, weight, activation) for choice in problem.choices]
            if all(option is not None for option in options):
                found.append((format_name(weight, activation), [o for o in options if o is not None]))
    return found


def _option(options: Sequence[Option], weight: int, activation: int | None) -> Option | None:
    """The option of these bits, as far as they are chosen."""
    free_weight, free_input = (len({getattr(o, tensor) for o in options}) > 1 for tensor in ("weight", "activation"))
    for option in options:
        right_input = activation is None or not free_input or option.activation == activation
        if (not free_weight or option.weight == weight) and right_input:
            return option
    return None
