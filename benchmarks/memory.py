"""The peak memory of a training step, quantized over float. As a module it needs only torch.

On a CPU the resident size of the process says little: the C library keeps freed memory, and other candidates share the
process. torch's profiler records every block that the allocator hands out and takes back, also inside compiled code, so the
running sum over one step gives its peak exactly and repeatably. Memory that torch does not allocate (the code of compiled
kernels, thread stacks) is not counted. On a GPU the allocator keeps the peak itself.

python -m benchmarks.memory                    # every network, eager; step_time measures the same beside the time
python -m benchmarks.memory --device cuda --precision bfloat16
"""

from __future__ import annotations

import gc
import json
import tempfile
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.training_step import PRECISIONS, TrainingStep


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


def main() -> None:
    from benchmarks.command_line import argument_parser, parse_options
    from benchmarks.failure import failure_line
    from benchmarks.measurement_file import RESULTS, write_measurement
    from benchmarks.network_steps import training_steps
    from benchmarks.networks import NETWORKS, networks_for

    parser = argument_parser(__doc__, with_device=True)
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, help="default: those of the device")
    parser.add_argument("--policy", default="w8a8")
    parser.add_argument("--precision", choices=PRECISIONS, default="float32")
    parser.add_argument("--batch", type=int, help="default: the network's own on the device")
    parser.add_argument("--out", type=Path, help="default: results/memory/<device>.json")
    options = parse_options(parser)
    device, cases = options.device, list[dict[str, Any]]()
    for name in options.networks or networks_for(device):
        case = {"network": name, "precision": options.precision, "policy": options.policy}
        try:
            steps = training_steps(NETWORKS[name], [options.policy], options.precision, device, options.batch)
            peaks = {}
            for which, step in steps.items():
                step()
                peaks[which] = peak_bytes(step)
            case |= {"peak_bytes": peaks, "memory_ratio": peaks[options.policy] / peaks["float"]}
        except Exception as error:
            case["error"] = failure_line(error)
        print(case, flush=True)
        cases.append(case)
        write_measurement(options.out or RESULTS / f"memory/{device}.json", {"cases": cases}, device)


if __name__ == "__main__":
    main()
