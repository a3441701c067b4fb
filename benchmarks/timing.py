"""How all candidates are timed: they take turns in one process, and ratios are computed within each turn.

Needs only torch, so that it also runs in the environments of other libraries.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping

import torch

WARMUP = 2
"""Turns that are not counted: the first ones allocate memory and choose kernels."""
MIN_TURNS = 3
"""Turns that are counted even if they exceed the time limit."""


def time_in_turns(
    candidates: Mapping[str, Callable[[], object]], rounds: int, device: str = "cpu", limit: float = 120.0
) -> dict[str, list[float]]:
    """Time calls that take turns, so that a busy machine slows all candidates alike.

    Args:
        candidates: name -> call. On a GPU a call ends when the device has finished its work.
        rounds: number of turns that are counted.
        limit: seconds after which no further turn starts, except the first `WARMUP + MIN_TURNS`.

    Returns:
        For each name the seconds of every counted call.
    """
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    begin = time.perf_counter()
    for turn in range(rounds + WARMUP):
        if turn >= WARMUP + MIN_TURNS and time.perf_counter() - begin > limit:
            break
        for name, call in candidates.items():
            _wait_for(device)
            start = time.perf_counter()
            call()
            _wait_for(device)
            if turn >= WARMUP:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def ratios_to(baseline: str, seconds: Mapping[str, list[float]]) -> dict[str, dict[str, float]]:
    """Median seconds, number of turns, and the median and quartiles of the ratio to `baseline` within each turn.

    >>> ratios_to("float", {"float": [1.0, 2.0, 1.0], "quantized": [2.0, 3.0, 1.5]})["quantized"]
    {'seconds': 2.0, 'turns': 3, 'ratio': 1.5, 'ratio_lower_quartile': 1.5, 'ratio_upper_quartile': 2.0}
    """
    result = {}
    for name, turns in seconds.items():
        ratios = sorted(a / b for a, b in zip(turns, seconds[baseline], strict=True))
        quarter = len(ratios) // 4
        result[name] = {
            "seconds": statistics.median(turns),
            "turns": len(turns),
            "ratio": statistics.median(ratios),
            "ratio_lower_quartile": ratios[quarter],
            "ratio_upper_quartile": ratios[-1 - quarter],
        }
    return result


def _wait_for(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()
