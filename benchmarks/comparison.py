"""Training steps against that of the float network: time, peak memory, and how torch.compile took them. Needs torch alone."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import torch
from torch._dynamo.utils import counters

from benchmarks.measure import interleaved, ratios
from benchmarks.memory import peak_bytes
from benchmarks.training_step import TrainingStep


def compare(steps: Mapping[str, TrainingStep], rounds: int, compiled: bool = False) -> dict[str, dict[str, Any]]:
    """Time and peak memory of each step over those of the step called "float", which takes turns with them.

    Returns:
        For each name what `ratios` gives, with peak_bytes and memory_ratio; where compiled, also compile_seconds (of the
        first step), graphs and graph_breaks.
    """
    torch._dynamo.reset()
    about: dict[str, dict[str, Any]] = {name: {} for name in steps}
    if compiled:
        steps = {name: step.compiled() for name, step in steps.items()}
        about = {name: _compile(step) for name, step in steps.items()}
    device = next(iter(steps.values())).x.device.type
    timed = ratios(interleaved(steps, rounds, device), "float")
    peaks = {name: peak_bytes(step) for name, step in steps.items()}
    return {
        name: {**row, "peak_bytes": peaks[name], "memory_ratio": peaks[name] / peaks["float"], **about[name]}
        for name, row in timed.items()
    }


def _compile(step: TrainingStep) -> dict[str, Any]:
    """Run the step for the first time, and count what became of its forward."""
    counters.clear()
    start = time.perf_counter()
    step()
    return {
        "compile_seconds": time.perf_counter() - start,
        "graphs": counters["stats"]["unique_graphs"],
        "graph_breaks": sum(counters["graph_break"].values()),
    }


def line(name: str, row: Mapping[str, Any]) -> str:
    """One candidate for the console."""
    spread = f"{row['ratio']:.2f} x [{row['ratio_lower_quartile']:.2f}, {row['ratio_upper_quartile']:.2f}]"
    text = f"  {name:12} {1000 * row['seconds']:9.1f} ms   {spread}   memory {row['memory_ratio']:.2f} x"
    if "graph_breaks" in row:
        text += f"   {row['graph_breaks']} graph breaks, compiled in {row['compile_seconds']:.0f} s"
    return text
