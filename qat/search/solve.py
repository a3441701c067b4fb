"""The choice of one option for each layer, least harmful together, under limits: an integer linear program, solved exactly."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from qat.contexts import no_output


class Option(NamedTuple):
    """One way to quantize a layer.

    weight, activation: bits of its weight and of its input; None: not chosen here.
    harm: what it does to the network, 0 or more.
    costs: name of a cost -> what this layer takes of it.
    """

    weight: int | None
    activation: int | None
    harm: float
    costs: Mapping[str, float]


@dataclass(frozen=True)
class Choice:
    """A layer and its options; of a layer that is not chosen, one."""

    layer: str
    options: Sequence[Option]


class Link(NamedTuple):
    """Two choices, by their numbers, that take the same bits of a tensor that they share: "weight" or "activation"."""

    first: int
    second: int
    tensor: str


@dataclass(frozen=True)
class Problem:
    """The choices, what ties them together, and what each cost is beside them."""

    choices: Sequence[Choice]
    links: Sequence[Link] = ()
    constant: Mapping[str, float] = field(default_factory=dict)

    def costs(self, chosen: Sequence[Option]) -> dict[str, float]:
        """The costs of one option for each choice."""
        names = {name for option in chosen for name in option.costs} | set(self.constant)
        return {
            name: self.constant.get(name, 0.0) + sum(option.costs.get(name, 0.0) for option in chosen)
            for name in sorted(names)
        }

    def dearest(self, cost: str) -> list[Option]:
        """The option of each choice that costs most, whatever the links say."""
        return [max(choice.options, key=lambda option: option.costs.get(cost, 0.0)) for choice in self.choices]

    def highest(self, cost: str) -> float:
        """The cost of the dearest options."""
        return self.costs(self.dearest(cost))[cost]


class InfeasibleError(ValueError):
    """No choice keeps the limits."""


def solve(problem: Problem, limits: Mapping[str, float], minimize: str | None = None) -> list[Option]:
    """One option for each choice, with the smallest sum of harms that keeps every limit.

    A binary variable for each option; `scipy.optimize.milp` (HiGHS: branch and bound) proves that nothing is better. Its
    tolerances are absolute, and harms and costs span many orders of magnitude: so harms are taken in units of the sum that was
    found last until that does not matter, and what exceeds a limit by a tolerance is cut off.

    Args:
        problem: the choices.
        limits: name of a cost -> its largest value.
        minimize: the name of a cost to minimize instead of the harm.

    Raises:
        InfeasibleError: no choice keeps the limits together.
    """
    options = [option for choice in problem.choices for option in choice.options]
    if not options:
        return []
    objective = np.array([o.harm if minimize is None else o.costs.get(minimize, 0.0) for o in options])
    unit = float(np.abs(objective).max()) or 1.0
    possible = np.ones(len(options))
    while True:
        taken = _solve_exactly(problem, options, objective / unit, possible, limits)
        total = float(objective[taken].sum())
        if unit <= max(total, 0.0) / NEAR or unit < SMALLEST_UNIT or total <= 0:
            return [options[int(i)] for i in taken]
        possible[objective > total * (1 + 1e-9)] = 0  # one alone is worse than all together were
        objective = objective * possible
        unit = total / (10 * NEAR)


def lowest_cost(problem: Problem, cost: str, limits: Mapping[str, float] | None = None) -> float:
    """The lowest possible value of a cost, while others keep their limits.

    Raises:
        InfeasibleError: no choice keeps the limits together.
    """
    return problem.costs(solve(problem, limits or {}, minimize=cost))[cost]


NEAR = 100.0
"""The sum of harms is at least this many units: the solver's tolerance, 1e-6 units, is 1e-8 of it."""
SMALLEST_UNIT = 1e-290
CUTS = 50
"""Choices that are cut off one by one; then limits are lowered by the tolerance instead."""
SCALE = 1000.0
"""The largest cost of an option, in the solver's units."""
TOLERANCE = 1e-8
"""More than the solver exceeds a limit by, relative to the largest cost of an option."""
Constraint = tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]
"""(rows, lowest, highest)."""


def _solve_exactly(
    problem: Problem,
    options: Sequence[Option],
    objective: NDArray[np.float64],
    possible: NDArray[np.float64],
    limits: Mapping[str, float],
) -> NDArray[np.intp]:
    """The places of the best options whose costs, as floats add up, keep every limit."""
    from scipy.optimize import Bounds, LinearConstraint, milp

    constraints, cuts = _constraints(problem, options, limits), list[Constraint]()
    while True:
        with no_output():  # HiGHS prints a line for some problems
            found = milp(
                objective, integrality=np.ones(len(options)), bounds=Bounds(0, possible), options={"mip_rel_gap": 0.0},
                constraints=[LinearConstraint(*constraint) for constraint in (*constraints, *cuts)],
            )  # fmt: skip
        if found.x is None:
            raise InfeasibleError(f"no choice of bits keeps {limits_text(limits)} together.")
        taken = np.flatnonzero(np.round(found.x))
        costs = problem.costs([options[int(i)] for i in taken])
        if all(costs.get(name, 0.0) <= limit for name, limit in limits.items()):
            return taken
        if len(cuts) < CUTS:
            cuts.append((_row(taken, len(options)), np.array([-np.inf]), np.array([len(taken) - 1.0])))
        else:
            cuts = _of_limits(problem, options, limits, TOLERANCE)


def _row(places: NDArray[np.intp], number: int) -> NDArray[np.float64]:
    row = np.zeros((1, number))
    row[0, places] = 1
    return row


def _constraints(problem: Problem, options: Sequence[Option], limits: Mapping[str, float]) -> list[Constraint]:
    """One option for each choice; equal bits of what is shared; the limits."""
    starts = np.cumsum([0, *(len(choice.options) for choice in problem.choices)])
    ranges = [range(starts[i], starts[i + 1]) for i in range(len(problem.choices))]
    one = np.zeros((len(ranges), len(options)))
    for row, places in enumerate(ranges):
        one[row, places] = 1
    rows = [(one, np.ones(len(ranges)), np.ones(len(ranges)))]
    for link in problem.links:
        widths = {getattr(options[i], link.tensor) for side in link[:2] for i in ranges[side]}
        same = np.zeros((len(widths), len(options)))
        for row, width in enumerate(sorted(widths, key=str)):
            for side, sign in ((link.first, 1), (link.second, -1)):
                for i in ranges[side]:
                    same[row, i] = sign * (getattr(options[i], link.tensor) == width)
        rows.append((same, np.zeros(len(widths)), np.zeros(len(widths))))
    return [*rows, *_of_limits(problem, options, limits)]


def _of_limits(
    problem: Problem, options: Sequence[Option], limits: Mapping[str, float], tolerance: float = 0.0
) -> list[Constraint]:
    """The limits, lowered by `tolerance`."""
    rows = []
    for name, limit in limits.items():
        costs = np.array([[option.costs.get(name, 0.0) for option in options]])
        unit = (float(costs.max()) or 1.0) / SCALE
        room = (limit - problem.constant.get(name, 0.0)) / unit
        rows.append((costs / unit, np.array([-np.inf]), np.array([room - tolerance * SCALE])))
    return rows


def limits_text(limits: Mapping[str, float]) -> str:
    """Limits as a part of a sentence: size=40,000 and mean_bits=3."""
    return " and ".join(f"{name}={limit:,.10g}" for name, limit in limits.items())
