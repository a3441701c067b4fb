"""How everything here is timed: candidates take turns in one process, and ratios are taken turn by turn.

Needs torch alone, so that it also runs in the peers' environments.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping

import torch

WARMUP = 2
"""Turns that are not counted: the first ones allocate and choose kernels."""
ENOUGH = 3
"""Turns that are counted even where they take longer than they may."""


def interleaved(
    work: Mapping[str, Callable[[], object]], rounds: int, device: str = "cpu", limit: float = 120.0
) -> dict[str, list[float]]:
    """Seconds of every call; the candidates take turns, so that a busy machine slows all of them alike.

    On a GPU a call ends when the device has done what it was asked. After `limit` seconds fewer rounds will do.
    """
    seconds: dict[str, list[float]] = {name: [] for name in work}
    begin = time.perf_counter()
    for turn in range(rounds + WARMUP):
        if turn >= WARMUP + ENOUGH and time.perf_counter() - begin > limit:
            break
        for name, call in work.items():
            _finish(device)
            start = time.perf_counter()
            call()
            _finish(device)
            if turn >= WARMUP:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def ratios(seconds: Mapping[str, list[float]], floor: str) -> dict[str, dict[str, float]]:
    """Median seconds, number of turns, and the median and quartiles of the ratio to `floor`, turn by turn.

    >>> ratios({"float": [1.0, 2.0, 1.0], "quantized": [2.0, 3.0, 1.5]}, "float")["quantized"]
    {'seconds': 2.0, 'turns': 3, 'ratio': 1.5, 'ratio_lower_quartile': 1.5, 'ratio_upper_quartile': 2.0}
    """
    result = {}
    for name, measured in seconds.items():
        paired = sorted(a / b for a, b in zip(measured, seconds[floor], strict=True))
        quarter = len(paired) // 4
        result[name] = {
            "seconds": statistics.median(measured),
            "turns": len(paired),
            "ratio": statistics.median(paired),
            "ratio_lower_quartile": paired[quarter],
            "ratio_upper_quartile": paired[-1 - quarter],
        }
    return result


def _finish(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def one_line(error: BaseException) -> str:
    """What went wrong, for a results file: the error's type and the first line that says something."""
    said = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    return f"{type(error).__name__}: {said}"[:300]
