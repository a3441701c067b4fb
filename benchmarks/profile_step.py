"""Where the time of a training step goes: torch's profiler on ResNet-20, float and quantized, by operation.

Read it before you make anything faster. About one minute on two threads of a CPU.

python -m benchmarks.profile_step --threads 2
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.record import RESULTS, check_device, write
from benchmarks.step_time import steps
from benchmarks.subject import SUBJECTS
from benchmarks.training_step import TrainingStep


def operations(step: TrainingStep, rounds: int, top: int) -> list[dict[str, Any]]:
    """The operations that take longest themselves: calls and milliseconds a step, and their share of all."""
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
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", choices=SUBJECTS, default="ResNet-20")
    parser.add_argument("--policy", default="w8a8")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--top", type=int, default=15)
    parser.add_argument("--batch", type=int, help="default: the network's own")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--out", type=Path, help="default: results/profile/<device>.json")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    device = check_device(options.device)
    candidates = steps(SUBJECTS[options.network], [options.policy], "float32", device, options.batch)
    found = {name: operations(step, options.rounds, options.top) for name, step in candidates.items()}
    write(options.out or RESULTS / f"profile/{device}.json", {"network": options.network, "steps": found}, device)
    for name, rows in found.items():
        print(name)
        for row in rows:
            print(
                f"  {row['operation']:45} {row['calls']:6.0f} {row['milliseconds']:9.2f} ms {100 * row['share']:5.1f} %"
            )


if __name__ == "__main__":
    main()
