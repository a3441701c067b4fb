"""The peak memory of a training step. Needs only torch.

On a CPU the resident size of the process says little: the C library keeps freed memory, and other candidates share the
process. torch's profiler records every block that the allocator hands out and takes back, also inside compiled code, so the
running sum over one step gives its peak exactly and repeatably. Memory that torch does not allocate (the code of compiled
kernels, thread stacks) is not counted. On a GPU the allocator keeps the peak itself.
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
    """Peak bytes of one step: the memory that stays between steps, and the most that the step adds to it.

    The step must have run before, so that its momentum exists. Gradients count as added by the step and are dropped
    first, because the profiler does not record the release of a block whose allocation it has not recorded.
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
    return max(accumulate(_allocations(recorded)), default=0)


def _allocations(recorded: profile) -> list[int]:
    """Bytes allocated (positive) and freed (negative), in chronological order."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        recorded.export_chrome_trace(str(path))
        events = json.loads(path.read_text())["traceEvents"]
    changes = [event for event in events if event.get("name") == "[memory]"]
    return [event["args"]["Bytes"] for event in sorted(changes, key=lambda event: event["ts"])]
