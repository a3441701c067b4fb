"""Latency of several callables in turns, so that a busy machine slows all of them alike."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

WARM_UP = 3
"""How many first calls do not count, because they allocate."""


@dataclass(frozen=True)
class Timing:
    """Milliseconds of a call: the median, the lower and upper quartile, how many calls were measured, and the fastest."""

    median: float
    low: float
    high: float
    calls: int
    fastest: float


def time_in_turns(
    calls: Mapping[str, Callable[[], object]],
    rounds: int = 50,
    seconds: float | None = None,
    least: int = 3,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, Timing]:
    """Call all in turns and measure each call but the first few.

    Args:
        calls: by name.
        rounds: how often each is called at most.
        seconds: after so many seconds no further round begins; None: never.
        least: rounds that are made whatever they take.
        clock: returns seconds; `time.process_time` does not count what other programs take.

    Returns:
        Name -> times of its calls.
    """
    times: dict[str, list[float]] = {name: [] for name in calls}
    begin = time.perf_counter()
    for turn in range(rounds + WARM_UP):
        if seconds is not None and turn >= least and time.perf_counter() - begin > seconds:
            break
        for name, call in calls.items():
            start = clock()
            call()
            times[name].append(1000 * (clock() - start))
    return {name: _timing(measured) for name, measured in times.items()}


def _timing(times: list[float]) -> Timing:
    counted = times[min(WARM_UP, len(times) // 2) :]
    low, median, high = np.quantile(counted, (0.25, 0.5, 0.75))
    return Timing(float(median), float(low), float(high), len(counted), min(counted))
