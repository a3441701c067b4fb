"""Time and peak memory of a training step, quantized over float: every network, eager and compiled, float32 and bfloat16.

Float and quantized networks take turns in one process. A case stops after two minutes or five turns, whichever is later; on two
threads of a CPU plan up to 90 minutes for everything, most of it for bfloat16 (slow without its instructions) and compiling.

python -m benchmarks.step_time --threads 2
python -m benchmarks.step_time --device cuda
python -m benchmarks.step_time --networks ResNet-20 --modes eager --precisions float32 --rounds 30
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch

import qat
from benchmarks.comparison import compare, line
from benchmarks.measure import one_line
from benchmarks.record import RESULTS, check_device, write
from benchmarks.subject import SUBJECTS, Subject
from benchmarks.training_step import PRECISIONS, TrainingStep

MODES = ("eager", "compiled")


def steps(
    subject: Subject, policies: list[str], precision: str, device: str, batch: int | None
) -> dict[str, TrainingStep]:
    """The float network, and one quantized with each policy: LSQ, weights per channel, every scale learned.

    First ranges are min-max, the quickest to observe: they do not change what a step costs.
    """
    torch.manual_seed(0)
    x, y = subject.example(batch, device)
    network = subject.build().to(device).train()
    found = {"float": TrainingStep(network, x, y, precision)}
    for policy in policies:
        prepared = qat.prepare(network, qat.load_policy(policy).with_parts("LSQ", "MinMax"))
        qat.calibrate(prepared, [x])
        found[policy] = TrainingStep(prepared.train(), x, y, precision)
    return found


def measure(subject: Subject, precision: str, mode: str, options: argparse.Namespace) -> dict[str, Any]:
    """One case. What torch cannot do is recorded, not raised: the next case may work."""
    batch = options.batch or subject.batch
    case = {"network": subject.name, "batch": batch, "precision": precision, "mode": mode, "rounds": options.rounds}
    try:
        candidates = steps(subject, options.policies, precision, options.device, batch)
        return {**case, "steps": compare(candidates, options.rounds, compiled=mode == "compiled")}
    except Exception as error:
        return {**case, "error": one_line(error)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", choices=SUBJECTS, default=list(SUBJECTS))
    parser.add_argument("--precisions", nargs="+", choices=PRECISIONS, default=list(PRECISIONS))
    parser.add_argument("--modes", nargs="+", choices=MODES, default=list(MODES))
    parser.add_argument("--policies", nargs="+", default=["w8a8", "w4a4"])
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--batch", type=int, help="default: the network's own, 128 or 8")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--out", type=Path, help="default: results/step_time/<device>.json")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    check_device(options.device)
    out = options.out or RESULTS / f"step_time/{options.device}.json"
    found: list[dict[str, Any]] = []
    for mode in options.modes:
        for name in options.networks:
            for precision in options.precisions:
                print(f"{name}, {precision}, {mode}", flush=True)
                case = measure(SUBJECTS[name], precision, mode, options)
                print(case["error"] if "error" in case else "\n".join(line(*row) for row in case["steps"].items()))
                found.append(case)
                write(out, {"cases": found}, options.device)


if __name__ == "__main__":
    main()
