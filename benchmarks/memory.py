"""The peak memory of a training step. Needs torch alone.

On a CPU the resident size of the process says little: the C library keeps what was freed, and other candidates share the
process. torch's profiler records every block its allocator hands out and takes back, also inside compiled code, so the
running sum of one step gives its peak exactly and repeatably. What libraries allocate behind torch's back (the code of
compiled kernels, thread stacks) is not in it. On a GPU the allocator keeps the peak itself.
"""

from __future__ import annotations

import gc
import json
import tempfile
from itertools import accumulate
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.training_step import TrainingStep


def peak_bytes(step: TrainingStep) -> int:
    """Bytes at the worst moment of one step: what stays between steps and what the step adds to it.

    The step must have run before, so that its momentum exists. Gradients belong to what it adds: they are dropped first,
    because the profiler does not see that a block is given back which it has not seen handed out.
    """
    step.optimizer.zero_grad()
    gc.collect()
    resident = step.resident_bytes()
    return resident + (_growth_on_gpu(step) if step.x.is_cuda else _growth_on_cpu(step))


def _growth_on_gpu(step: TrainingStep) -> int:
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    step()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def _growth_on_cpu(step: TrainingStep) -> int:
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as recorded:
        step()
    return max(accumulate(_blocks(recorded)), default=0)


def _blocks(recorded: profile) -> list[int]:
    """Bytes handed out (positive) and taken back (negative), in the order in which it happened."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        recorded.export_chrome_trace(str(path))
        events = json.loads(path.read_text())["traceEvents"]
    changes = [event for event in events if event.get("name") == "[memory]"]
    return [event["args"]["Bytes"] for event in sorted(changes, key=lambda event: event["ts"])]
