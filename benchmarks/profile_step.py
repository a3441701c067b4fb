"""Where the time of a training step goes: torch's profiler on ResNet-20, float and quantized, by operation.

Read the result before you optimise anything. About one minute on two threads of a CPU.

python -m benchmarks.profile_step --threads 2
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.command_line import argument_parser, parse_options
from benchmarks.measurement_file import RESULTS, write_measurement
from benchmarks.network_steps import training_steps
from benchmarks.networks import NETWORKS
from benchmarks.training_step import TrainingStep


def longest_operations(step: TrainingStep, rounds: int, top: int) -> list[dict[str, Any]]:
    """The `top` operations by their own time: calls and milliseconds per step, and their share of the step."""
    device = step.x.device.type
    step()
    step()
    activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if device == "cuda" else [])
    with profile(activities=activities, acc_events=True) as recorded:
        for _ in range(rounds):
            step()
        if device == "cuda":
            torch.cuda.synchronize()
    attribute = f"self_{'device' if device == 'cuda' else 'cpu'}_time_total"
    rows = [(event.key, event.count, getattr(event, attribute)) for event in recorded.key_averages()]
    total = sum(microseconds for _, _, microseconds in rows)
    longest = sorted(rows, key=lambda row: -row[2])[:top]
    return [
        {"operation": key, "calls": calls / rounds, "milliseconds": spent / rounds / 1000, "share": spent / total}
        for key, calls, spent in longest
    ]


def main() -> None:
    parser = argument_parser(__doc__, with_device=True)
    parser.add_argument("--network", choices=NETWORKS, default="ResNet-20")
    parser.add_argument("--policy", default="w8a8")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--top", type=int, default=15)
    parser.add_argument("--batch", type=int, help="default: the network's own")
    parser.add_argument("--out", type=Path, help="default: results/profile/<device>.json")
    options = parse_options(parser)
    device = options.device
    candidates = training_steps(NETWORKS[options.network], [options.policy], "float32", device, options.batch)
    profiles = {name: longest_operations(step, options.rounds, options.top) for name, step in candidates.items()}
    out = options.out or RESULTS / f"profile/{device}.json"
    write_measurement(out, {"network": options.network, "steps": profiles}, device)
    for name, rows in profiles.items():
        print(name)
        for row in rows:
            print(
                f"  {row['operation']:45} {row['calls']:6.0f} {row['milliseconds']:9.2f} ms {100 * row['share']:5.1f} %"
            )


if __name__ == "__main__":
    main()
