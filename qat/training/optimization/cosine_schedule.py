"""Numbers that change over a fit on half a cosine."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import lightning as L

from qat.training.lightning.fit_progress import fraction_of_fit

Schedule = float | Sequence[float]
"""A number, or (first, last): half a cosine from `first` to `last` over the fit."""

ParsedSchedule = float | tuple[float, float]


def parse_schedule(name: str, schedule: Any, highest: float, example: str) -> ParsedSchedule | None:
    """The schedule as a number or a pair of numbers; None for None.

    Args:
        name: of the parameter, for the message.
        schedule: as the user gave it.
        highest: the largest value that is allowed; the smallest is 0.
        example: what to write instead, for the message.

    Raises:
        ValueError: it is neither a number nor a pair of numbers, or out of range.
    """
    if schedule is None:
        return None
    is_pair = isinstance(schedule, Sequence) and not isinstance(schedule, str)
    values = tuple(schedule) if is_pair else (schedule,)
    numbers = all(isinstance(v, int | float) and not isinstance(v, bool) for v in values)
    valid = numbers and all(0 <= v <= highest and math.isfinite(v) for v in values)
    if not valid or len(values) != 1 + is_pair:
        span = "0 or more" if highest == math.inf else f"from 0 to {highest:g}"
        raise ValueError(f"{name}={schedule!r} is not possible: write a number, {span}, as {example}.")
    return (values[0], values[1]) if is_pair else values[0]


def scheduled_value(schedule: ParsedSchedule, trainer: L.Trainer, batch_idx: int) -> float:
    """The value of the schedule when batch `batch_idx` of the current epoch begins.

    Steps do not tell how far a fit is: with manual optimization a batch may have several, or none.
    """
    if not isinstance(schedule, tuple):
        return schedule
    return cosine_between(*schedule, progress=fraction_of_fit(trainer, batch_idx))


def cosine_between(first: float, last: float, progress: float) -> float:
    """Half a cosine from `first` to `last`. progress: 0 at the start of the fit, 1 at its end and beyond.

    >>> [round(cosine_between(0.1, 0.01, progress), 4) for progress in (0.0, 0.5, 1.0)]
    [0.1, 0.055, 0.01]
    """
    return last + (first - last) * (1 + math.cos(math.pi * min(1.0, progress))) / 2
