"""What a search varies: keys, and the values that each can take."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from hydra.core.override_parser.types import IntervalSweep, Override, RangeSweep

from qat.experiment.sweep.grid import Job, parse
from qat.experiment.sweep.names import job_name


@dataclass(frozen=True)
class Numbers:
    """A key that takes numbers. step: between them; None: all of them."""

    low: float
    high: float
    step: float | None = None
    log: bool = False

    @property
    def whole(self) -> bool:
        """Whether they are whole numbers."""
        return all(isinstance(value, int) for value in (self.low, self.high, self.step) if value is not None)


@dataclass(frozen=True)
class Space:
    """fixed: overrides of every job; varied: key -> its values, as texts, or numbers."""

    fixed: tuple[str, ...]
    varied: dict[str, tuple[str, ...] | Numbers]

    @classmethod
    def of(cls, arguments: Sequence[str]) -> Space:
        """The space that arguments describe: `policy=w4a4,w4a8`, `optim.lr=tag(log, interval(0.001, 0.1))`, `seed=range(5)`."""
        fixed, varied = [], {}
        for override in parse(arguments):
            if override.is_sweep_override():
                varied[str(override.get_key_element())] = _values(override)
            else:
                fixed.append(str(override.input_line))
        return cls(tuple(fixed), varied)

    def job(self, values: dict[str, Any], number: int | None = None) -> Job:
        """The job with these values. number: of the trial, for its name."""
        choices = {key: str(value) for key, value in values.items()}
        varied = [f"{key}={value}" for key, value in choices.items()]
        return Job((*self.fixed, *varied), choices, job_name(varied if number is None else [str(number), *varied]))

    def examples(self) -> Iterator[Job]:
        """Jobs in which each value of each key occurs, of numbers the lowest and the highest, for checks before a search."""
        ends = {key: (v.low, v.high) if isinstance(v, Numbers) else v for key, v in self.varied.items()}
        first = {key: values[0] for key, values in ends.items()}
        yield self.job(first)
        for key, values in ends.items():
            for value in values[1:]:
                yield self.job({**first, key: value})


def _values(override: Override) -> tuple[str, ...] | Numbers:
    value = override.value()
    if isinstance(value, IntervalSweep):
        assert value.start is not None
        assert value.end is not None
        whole = all(isinstance(end, int) for end in (value.start, value.end))
        return Numbers(value.start, value.end, 1 if whole else None, "log" in value.tags)
    if isinstance(value, RangeSweep) and not value.shuffle:
        found = list(value.range())
        return Numbers(min(found), max(found), abs(value.step), "log" in value.tags)
    return tuple(map(str, override.sweep_string_iterator()))
