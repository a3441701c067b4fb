"""`qat.search.allocate`: the bits of every layer, under a budget."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, get_args

from torch import Tensor, nn

from qat.arguments import as_path, is_whole_number
from qat.doctor.sensitivity import check_loss
from qat.files import write_atomically
from qat.report.results.allocation import AllocationResult, CostRange, LayerBits, TensorHarm
from qat.search.begin import KEEP, WIDTHS, Search, begin, names_to_keep
from qat.search.budget import UNITS, Budget, LatencyTable
from qat.search.front import pareto_points
from qat.search.harm import METHODS, Harms, Method, find_harms, measured_harm, with_bits
from qat.search.solve import Option, Problem, lowest_cost, solve
from qat.search.table import table
from qat.transform import Policy, load_policy
from qat.transform.calibrate import list_of_batches
from qat.transform.policy_record import plain_data

POINTS = 8
"""Budgets for which the Pareto front is drawn."""
METHOD_OF_LOSS = "the change of the given loss with this tensor alone quantized"


@dataclass(frozen=True)
class Allocation:
    """The bits of every layer. `str` gives a table.

    Attributes:
        policy: the policy with a rule for each layer: for `qat.prepare`, callbacks, PTQ passes, ... like any other.
        record: what was measured and chosen, as plain data.
    """

    policy: Policy
    record: AllocationResult

    def __str__(self) -> str:
        return table(self.record)

    def save(self, path: str | Path) -> Path:
        """Write it as JSON, whole or not at all. Returns `path`."""
        content = {"policy": plain_data(self.policy), "record": self.record.to_dict()}
        return write_atomically(path, json.dumps(content, indent=2, allow_nan=False) + "\n")

    @classmethod
    def load(cls, path: str | Path) -> Allocation:
        """Read what `save` wrote.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: it is not an allocation.
        """
        path = as_path(path)
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            return cls(load_policy(content["policy"]), AllocationResult.from_dict(content["record"]))
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path} is not an allocation ({error}): write it with Allocation.save.") from error


def allocate(
    model: nn.Module,
    policy: Policy | str | Path | Mapping[str, Any],
    batches: Iterable[Any],
    *,
    size: float | None = None,
    bops: float | None = None,
    mean_bits: float | None = None,
    latency: float | None = None,
    latency_table: LatencyTable | Mapping[str, Mapping[str, float]] | str | Path | None = None,
    weight_bits: Iterable[int] = WIDTHS,
    activation_bits: Iterable[int] = (),
    keep: Iterable[str] = KEEP,
    sensitivity: Method = "measured",
    loss: Callable[[Any, Any], Tensor] | None = None,
    points: int = POINTS,
) -> Allocation:
    """Choose the bits of every layer so that they harm least together and keep the budget.

        allocation = qat.search.allocate(model, "w4a8", batches, size=40_000)
        prepared = qat.prepare(model, allocation.policy, example_inputs)

    The harms of tensors are summed, and the sum is minimized exactly by an integer linear program, as in HAWQ-V3 (Yao et al.
    2021, https://arxiv.org/abs/2011.10680). Layers that read one tensor have the same bits of it, and those of one weight, too.

    Args:
        model: in float; it is not changed.
        policy: how tensors are quantized, but for the bits that are searched.
        batches: as for `qat.calibrate`; labels at their end count only for `loss`.
        size, bops, mean_bits, latency: limits, at least one; see `Budget`.
        latency_table: measured times of layers, layer -> format -> milliseconds, or the path of a YAML or JSON file with them.
        weight_bits: the widths of weights among which is chosen.
        activation_bits: those of the inputs of layers; none: the policy's. `residual_bits` stays.
        keep: layers that keep the bits of the policy: the match of their rule, or globs on their names.
        sensitivity: how the harm of a tensor at each width is found: "measured" or "fisher"; see `Method`.
        loss: of (outputs, batch), to measure its change instead of the divergence.
        points: number of budgets for which the Pareto front is computed and measured; 0: no front.

    Raises:
        ValueError: the budget is below the smallest possible, above float, or names nothing; the message has the range. Or the
            model is prepared already, no layer is searched, there are no batches, or the outputs hold no floats.
    """
    start = time.perf_counter()
    _check_options(sensitivity, loss, points)
    budget = Budget(size, bops, mean_bits, latency, None if latency_table is None else _times(latency_table))
    kept, chosen = list_of_batches(batches), load_policy(policy)
    widths = (weight_bits, activation_bits)
    search = begin(model, chosen, kept[0], budget, widths, names_to_keep(keep))
    harms = find_harms(model, chosen, search.searched, search.widths, kept, sensitivity, loss)
    problem = search.problem(harms)
    options = solve(problem, budget.limits)
    policy_of = partial(_policy_of, chosen, search)
    limited, measure = next(iter(budget.limits)), partial(_measured_harm, model, policy_of, kept, loss)
    front = pareto_points(problem, options, limited, search.widths, points, measure)
    method = METHODS[sensitivity] if loss is None else METHOD_OF_LOSS
    costs, layers = _cost_ranges(problem, options, search), _layer_bits(search, problem, options, harms)
    record = AllocationResult(method, costs, layers, _tensor_harms(harms), front, time.perf_counter() - start)
    return Allocation(policy_of(options), record)


def _times(given: LatencyTable | Mapping[str, Mapping[str, float]] | str | Path) -> LatencyTable:
    """The table itself, of plain content, or in a file."""
    if isinstance(given, str | Path):
        return LatencyTable.read(given)
    return LatencyTable.checked(given.times if isinstance(given, LatencyTable) else given)


def _check_options(sensitivity: Any, loss: Any, points: Any) -> None:
    """Check the values of options, and that they go together.

    Raises:
        ValueError: an option does not exist, or two do not go together.
    """
    if sensitivity not in get_args(Method):
        raise ValueError(f"sensitivity={sensitivity!r} does not exist: write {' or '.join(get_args(Method))}.")
    if not is_whole_number(points, lowest=0):
        raise ValueError(f"points={points!r} is not possible: write a whole number of budgets, or 0 for no front.")
    check_loss(loss)
    if loss is not None and sensitivity != "measured":
        raise ValueError("a loss is measured, not estimated: write sensitivity='measured', or leave it out.")


def _measured_harm(
    model: nn.Module,
    policy_of: Callable[[Sequence[Option]], Policy],
    batches: Sequence[Any],
    loss: Callable[[Any, Any], Tensor] | None,
    options: Sequence[Option],
) -> float:
    """The harm of the whole network in these bits."""
    return measured_harm(model, policy_of(options), batches, loss)


def _policy_of(policy: Policy, search: Search, options: Sequence[Option]) -> Policy:
    """The policy with a rule for each layer that is searched."""
    rules = {layer.name: layer.rule for layer in search.searched}
    widths = {
        layer.name: (option.weight, option.activation)
        for layer, option in zip(search.layers, options, strict=True)
        if layer.name in rules
    }
    return with_bits(policy, rules, widths, f"{policy.name}_mixed")


def _cost_ranges(problem: Problem, options: Sequence[Option], search: Search) -> list[CostRange]:
    """Every cost that is known, the limited ones first."""
    value, limits = problem.costs(options), search.budget.limits
    return [
        CostRange(
            name, UNITS[name], value[name], limits.get(name), lowest_cost(problem, name), problem.highest(name),
            search.in_float[name],
        )
        for name in sorted(value, key=lambda name: (name not in limits, list(UNITS).index(name)))
    ]  # fmt: skip


def _layer_bits(search: Search, problem: Problem, options: Sequence[Option], harms: Harms) -> list[LayerBits]:
    names = {layer.name for layer in search.searched}
    shares = {link.second: problem.choices[link.first].layer for link in problem.links}
    return [
        LayerBits(
            layer.name, layer.elements, layer.multiply_adds, option.weight, option.activation, layer.name not in names,
            option.harm if layer.name in names else None, shares.get(place, ""),
        )
        for place, (layer, option) in enumerate(zip(search.layers, options, strict=True))
    ]  # fmt: skip


def _tensor_harms(harms: Harms) -> list[TensorHarm]:
    return [
        TensorHarm(layer, tensor, bits, harm)
        for tensor, found in (("weight", harms.weights), ("activation", harms.inputs))
        for (layer, bits), harm in found.items()
    ]
