"""What is known before anything is measured: the layers, their costs, and whether the budget is possible."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn

from qat.arguments import check_network
from qat.search.budget import UNITS, Budget, checked_widths
from qat.search.costs import constant_costs, float_costs
from qat.search.harm import Harms, with_bits
from qat.search.layers import POSITIONS, Layer, find_layers, is_kept
from qat.search.problem import has_static_input, make_problem
from qat.search.solve import InfeasibleError, Problem, limits_text, lowest_cost, solve
from qat.transform import Policy, is_prepared, prepare
from qat.transform.batches import call_of

WIDTHS = (2, 3, 4, 6, 8)
KEEP = ("first", "last")


@dataclass(frozen=True)
class Search:
    """The layers of a network, those whose bits are chosen, and what they cost.

    Attributes:
        layers: all quantized layers, in the order in which they run.
        searched: those whose bits are chosen.
        widths: of weights and of inputs; the latter may be empty.
        constant: costs beside the layers.
        in_float: costs of the float network.
        budget: the limits.
    """

    layers: Sequence[Layer]
    searched: Sequence[Layer]
    widths: tuple[Sequence[int], Sequence[int]]
    constant: Mapping[str, float]
    in_float: Mapping[str, float]
    budget: Budget

    def problem(self, harms: Harms) -> Problem:
        """The integer program that chooses the bits, once harms are known."""
        return make_problem(self.layers, self.searched, self.widths, harms, self.constant, self.budget)


def check_budget(
    model: nn.Module,
    policy: Policy,
    example: Any,
    budget: Budget,
    weight_bits: Iterable[int] = WIDTHS,
    activation_bits: Iterable[int] = (),
    keep: Iterable[str] = KEEP,
) -> None:
    """Refuse what `allocate` would refuse, without data: `example` is a batch of any values.

    Raises:
        ValueError: see `allocate`.
    """
    begin(model, policy, example, budget, (weight_bits, activation_bits), names_to_keep(keep))


def names_to_keep(keep: str | Iterable[str]) -> tuple[str, ...]:
    """`keep` as a tuple; one name is a list of one.

    Raises:
        ValueError: it holds something other than names.
    """
    names = (keep,) if isinstance(keep, str) else tuple(keep) if isinstance(keep, Iterable) else (keep,)
    if not all(isinstance(name, str) for name in names):
        raise ValueError(
            f"keep={keep!r} is not possible: write matches of rules or names of layers, as ['first', 'fc*']."
        )
    return names


def _check_kept(layers: Sequence[Layer], keep: tuple[str, ...]) -> None:
    """Raise ValueError for a name in `keep` that matches no layer; "first" and "last" need not match one."""
    for name in keep:
        if name not in POSITIONS and not any(is_kept(layer, (name,)) for layer in layers):
            names = ", ".join(layer.name for layer in layers)
            raise ValueError(
                f"keep={list(keep)}: {name!r} is neither a layer nor the match of a rule; layers: {names}."
            )


def begin(
    model: nn.Module,
    policy: Policy,
    batch: Any,
    budget: Budget,
    widths: tuple[Iterable[int], Iterable[int]],
    keep: tuple[str, ...],
) -> Search:
    """Find the layers and check that the budget is possible."""
    check_network(model)
    if is_prepared(model):
        raise ValueError("the model is prepared already: allocate bits for the float model.")
    weights, inputs = checked_widths(*widths)
    call = call_of(model, batch)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about training, and this network is not trained
        prepared = prepare(model, policy, call.example_inputs)
        found = find_layers(prepared)
        _check_kept(found, keep)
        searched = [layer for layer in found if not is_kept(layer, keep)]
        searched = [layer for layer in searched if layer.weights or (inputs and has_static_input(layer))]
        if not searched:
            raise ValueError(f"keep={list(keep)} leaves no quantized layer whose bits could be chosen: write less.")
        rules = {layer.name: layer.rule for layer in searched}
        fewest = (weights[0], inputs[0] if inputs else None)
        try:
            smallest = with_bits(policy, rules, dict.fromkeys(rules, fewest), policy.name)
            prepared = prepare(model, smallest, call.example_inputs)
        except ValueError as error:
            of_inputs = f" and {fewest[1]} of activation_bits" if inputs else ""
            raise ValueError(
                f"the fewest bits of the search, {fewest[0]} of weight_bits{of_inputs}, are not possible ({error}) Leave out a "
                "width that a quantizer lacks, or write the layer in keep."
            ) from None
    samples = next((x.shape[0] for x in (*call.args, *call.kwargs.values()) if isinstance(x, Tensor) and x.ndim), 1)
    layers = [
        replace(layer, rule=rules.get(layer.name, layer.rule), multiply_adds=layer.multiply_adds // samples)
        for layer in find_layers(prepared)  # with equal bits, layers that share an input share its quantizer
    ]
    searched = [layer for layer in layers if layer.name in rules]
    if budget.bops is not None and not any(layer.multiply_adds for layer in layers):
        raise ValueError(
            f"budget.bops={budget.bops:,g} is not possible: {type(model).__name__} has no graph, so the multiply-adds of its "
            "layers are not known: write size or mean_bits."
        )
    constant, in_float = constant_costs(prepared, layers), float_costs(model, layers, budget)
    search = Search(layers, searched, (weights, inputs), constant, in_float, budget)
    problem = search.problem(Harms({}, {}, {}))
    _check_limits(problem, budget.limits, in_float)
    return search


def _check_limits(problem: Problem, limits: Mapping[str, float], in_float: Mapping[str, float]) -> None:
    """Raise ValueError, with the possible range, for a limit that cannot be kept, alone or beside the others."""
    for name, limit in limits.items():
        lowest = lowest_cost(problem, name)
        highest, of_what = in_float[name], ", that of the float network"
        if lowest > highest:  # milliseconds, where the runtime is faster in float
            highest, of_what = problem.highest(name), f"; the float network has {highest:,.6g}"
        if not lowest <= limit <= highest:
            raise ValueError(
                f"budget.{name}={limit:,.10g} is not possible: with these layers and widths it goes from "
                f"{at_least(lowest)} to {at_most(highest)} {UNITS[name]}{of_what}."
            )
    try:
        solve(problem, limits)
    except InfeasibleError:
        others = {name: {k: v for k, v in limits.items() if k != name} for name in limits}
        lowest_of = {name: lowest_cost(problem, name, rest) for name, rest in others.items()}
        ways = " or ".join(f"{name} from {at_least(found)}" for name, found in lowest_of.items())
        raise ValueError(
            f"no choice of bits keeps {limits_text(limits)} together: beside the other limits, {ways} is possible."
        ) from None


def at_least(value: float) -> str:
    """A number that is not below `value`, to write into a budget.

    >>> at_least(115639.25), at_least(3.4042553)
    ('115,640', '3.40426')
    """
    return _rounded(value, math.ceil)


def at_most(value: float) -> str:
    """A number that is not above `value`."""
    return _rounded(value, math.floor)


def _rounded(value: float, direction: Callable[[float], int]) -> str:
    digits = max(0, 5 - math.floor(math.log10(value))) if value > 0 else 0
    text = f"{direction(value * 10**digits) / 10**digits:,.{digits}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text
