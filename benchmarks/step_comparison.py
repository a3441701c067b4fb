"""Training steps compared with that of the float network: time, peak memory, and graph breaks. Needs only torch."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import torch
from torch._dynamo.utils import counters

from benchmarks.memory import peak_bytes
from benchmarks.timing import ratios_to, time_in_turns
from benchmarks.training_step import TrainingStep


def compare_steps(steps: Mapping[str, TrainingStep], rounds: int, compiled: bool = False) -> dict[str, dict[str, Any]]:
    """Measure time and peak memory of each step, and their ratios to those of the step called "float".

    Returns:
        For each name the result of `ratios_to`, peak_bytes and memory_ratio; if compiled, also compile_seconds (of the
        first step), graphs and graph_breaks.
    """
    torch._dynamo.reset()
    compilation: dict[str, dict[str, Any]] = {name: {} for name in steps}
    if compiled:
        steps = {name: step.compiled() for name, step in steps.items()}
        compilation = {name: _compile(step) for name, step in steps.items()}
    device = next(iter(steps.values())).x.device.type
    timing = ratios_to("float", time_in_turns(steps, rounds, device))
    peaks = {name: peak_bytes(step) for name, step in steps.items()}
    return {
        name: {**row, "peak_bytes": peaks[name], "memory_ratio": peaks[name] / peaks["float"], **compilation[name]}
        for name, row in timing.items()
    }


def _compile(step: TrainingStep) -> dict[str, Any]:
    """Run a compiled step for the first time; count its graphs and graph breaks."""
    counters.clear()
    start = time.perf_counter()
    step()
    return {
        "compile_seconds": time.perf_counter() - start,
        "graphs": counters["stats"]["unique_graphs"],
        "graph_breaks": sum(counters["graph_break"].values()),
    }


def console_line(name: str, row: Mapping[str, Any]) -> str:
    """The result of one candidate, for the console."""
    spread = f"{row['ratio']:.2f} x [{row['ratio_lower_quartile']:.2f}, {row['ratio_upper_quartile']:.2f}]"
    text = f"  {name:12} {1000 * row['seconds']:9.1f} ms   {spread}   memory {row['memory_ratio']:.2f} x"
    if "graph_breaks" in row:
        text += f"   {row['graph_breaks']} graph breaks, compiled in {row['compile_seconds']:.0f} s"
    return text
