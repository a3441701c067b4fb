"""The jobs of a sweep in groups that differ in nothing but the seed, and their means."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from qat.experiment.schema.values import Objective
from qat.experiment.sweep.grid import Job
from qat.experiment.sweep.job_state import JobState
from qat.report import Results, Row
from qat.report.judgement.objectives import (
    OBJECTIVES,
    best_ptq,
    float_row,
    minutes,
    of_row,
    trained_row,
    validation_value,
)

SEED = "seed"


class Entry(NamedTuple):
    """A job and where it stands."""

    job: Job
    state: JobState


class Spread(NamedTuple):
    """Mean and standard deviation (of n - 1) over seeds; None: one value."""

    mean: float
    deviation: float | None

    def scaled(self, factor: float) -> Spread:
        """Both in another unit."""
        return Spread(factor * self.mean, None if self.deviation is None else factor * self.deviation)


@dataclass(frozen=True)
class Group:
    """Jobs with the same choices. choices: key -> value, without the seed."""

    choices: Mapping[str, str]
    entries: tuple[Entry, ...]

    @property
    def name(self) -> str:
        """The choices in a line."""
        return ", ".join(f"{key}={short(value)}" for key, value in self.choices.items()) or "this configuration"

    @property
    def results(self) -> list[Results]:
        """The results of the finished jobs."""
        return [entry.state.results for entry in self.entries if entry.state.results is not None]

    def spread(self, value: Callable[[Results], float | None]) -> Spread | None:
        """Over the jobs that are finished; None if one of them was not measured."""
        values = [value(results) for results in self.results]
        if not values or any(v is None or not math.isfinite(v) for v in values):
            return None
        numbers = [float(v) for v in values if v is not None]
        return Spread(statistics.mean(numbers), statistics.stdev(numbers) if len(numbers) > 1 else None)


def score(results: Results) -> float | None:
    """The test value of the trained network, nearest to what is deployed."""
    row = trained_row(results)
    return None if row is None else row.score


def over_float(results: Results) -> float | None:
    """How much higher the test value of the trained network is than the float network's."""
    return _difference(trained_row(results), float_row(results))


def over_ptq(results: Results) -> float | None:
    """How much higher it is than that of the best PTQ row of the same run."""
    return _difference(trained_row(results), best_ptq(results))


VALUES: dict[str, Callable[[Results], float | None]] = {
    "validation": validation_value,
    "test": score,
    "over_float": over_float,
    "over_best_ptq": over_ptq,
    "size_bytes": of_row("size_bytes"),
    "latency_ms_batch1": of_row("latency_ms_batch1"),
    "latency_ms_batch32": of_row("latency_ms_batch32"),
    "minutes": minutes,
}
"""The numbers of a job, in the order of the columns."""


def grouped(entries: Sequence[Entry]) -> list[Group]:
    """The groups, in the order of their first jobs. Of equal jobs, which a search may draw, one with results counts."""
    found: dict[tuple[tuple[str, str], ...], dict[str | None, Entry]] = {}
    for entry in entries:
        choices = tuple((key, value) for key, value in entry.job.choices.items() if key != SEED)
        members = found.setdefault(choices, {})
        seed = entry.job.choices.get(SEED)
        if seed not in members or members[seed].state.results is None:
            members[seed] = entry
    return [Group(dict(choices), tuple(members.values())) for choices, members in found.items()]


def best_group(groups: Sequence[Group], objective: Objective) -> Group | None:
    """The group with the best mean of an objective; of several, the one with the smallest file."""
    best = best_groups(groups, objective)
    return max(best, key=lambda group: _rank(group, of_row("size_bytes"), higher=False), default=None)


def best_groups(groups: Sequence[Group], objective: Objective) -> list[Group]:
    """All groups with the best mean of an objective: on few validation images, several may have the same accuracy.

    Groups in which a job failed count only if there is no other. Where the objective was not measured (an accuracy without
    validation images), the test value decides.
    """
    whole = [group for group in groups if len(group.results) == len(group.entries)]
    candidates = [group for group in whole or groups if group.results]
    meaning = OBJECTIVES[objective]
    measured = all(group.spread(meaning.value) for group in candidates)
    value, higher = (meaning.value, meaning.higher) if measured else (score, True)
    ranks = [_rank(group, value, higher) for group in candidates]
    return [group for group, rank in zip(candidates, ranks, strict=True) if rank == max(ranks)]


def _rank(group: Group, value: Callable[[Results], float | None], higher: bool) -> float:
    """The mean as a key for `max`, rounded to nine digits: the others depend on the order of the seeds."""
    spread = group.spread(value)
    return -math.inf if spread is None else float(f"{spread.mean if higher else -spread.mean:.9g}")


def pareto_groups(groups: Sequence[Group], objectives: Sequence[Objective]) -> list[Group]:
    """The groups that no other beats in one objective without losing in another."""
    points = {}
    for index, group in enumerate(groups):
        spreads = [(group.spread(OBJECTIVES[name].value), OBJECTIVES[name].higher) for name in objectives]
        if all(spread for spread, _ in spreads):
            points[index] = [spread.mean if higher else -spread.mean for spread, higher in spreads if spread]

    def beaten(mine: list[float]) -> bool:
        return any(other != mine and all(b >= a for a, b in zip(mine, other, strict=True)) for other in points.values())

    return [groups[index] for index, point in points.items() if not beaten(point)]


def _difference(row: Row | None, other: Row | None) -> float | None:
    return None if row is None or other is None else row.score - other.score


def short(value: str) -> str:
    """A value for a table.

    >>> short("0.0010323260351976571"), short("0.05"), short("w4a8")
    ('0.001032', '0.05', 'w4a8')
    """
    try:
        return value if len(value) <= 8 else f"{float(value):.4g}"
    except ValueError:
        return value
