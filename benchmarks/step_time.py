"""Time and peak memory of a training step, quantized over float: every network, eager and compiled, float32 and bfloat16.

Float and quantized networks take turns in one process. A case stops after two minutes or five turns, whichever is later. On
two threads of a CPU everything takes up to 90 minutes, most of it for bfloat16 (slow without its instructions) and compiling.

python -m benchmarks.step_time --threads 2
python -m benchmarks.step_time --device cuda
python -m benchmarks.step_time --device cuda --layout channels_last
python -m benchmarks.step_time --networks ResNet-20 --modes eager --precisions float32 --rounds 30
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from benchmarks.command_line import argument_parser, parse_options
from benchmarks.failure import failure_line
from benchmarks.measurement_file import RESULTS, write_measurement
from benchmarks.network_steps import training_steps
from benchmarks.networks import NETWORKS, BenchmarkNetwork, networks_for
from benchmarks.step_comparison import compare_steps, console_line
from benchmarks.training_step import PRECISIONS

MODES = ("eager", "compiled")
LAYOUTS = ("contiguous", "channels_last")


def measure_case(benchmark: BenchmarkNetwork, precision: str, mode: str, options: argparse.Namespace) -> dict[str, Any]:
    """Measure one case. An error is recorded, not raised, because the next case may work."""
    batch = options.batch or benchmark.batch_on(options.device)
    case = {"network": benchmark.name, "batch": batch, "precision": precision, "mode": mode, "rounds": options.rounds}
    case["layout"] = options.layout
    try:
        steps = training_steps(benchmark, options.policies, precision, options.device, batch, options.layout)
        return {**case, "steps": compare_steps(steps, options.rounds, compiled=mode == "compiled")}
    except Exception as error:
        return {**case, "error": failure_line(error)}


def main() -> None:
    parser = argument_parser(__doc__, with_device=True)
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, help="default: those of the device")
    parser.add_argument("--precisions", nargs="+", choices=PRECISIONS, default=list(PRECISIONS))
    parser.add_argument("--modes", nargs="+", choices=MODES, default=list(MODES))
    parser.add_argument("--policies", nargs="+", default=["w8a8", "w4a4"])
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--batch", type=int, help="default: the network's own on the device")
    parser.add_argument("--layout", choices=LAYOUTS, default="contiguous")
    parser.add_argument(
        "--out", type=Path, help="default: results/step_time/<device>.json, or <device>_channels_last.json"
    )
    options = parse_options(parser)
    suffix = "_channels_last" if options.layout == "channels_last" else ""
    out = options.out or RESULTS / f"step_time/{options.device}{suffix}.json"
    cases: list[dict[str, Any]] = []
    for mode in options.modes:
        for name in options.networks or networks_for(options.device):
            for precision in options.precisions:
                print(f"{name}, {precision}, {mode}", flush=True)
                case = measure_case(NETWORKS[name], precision, mode, options)
                lines = [case["error"]] if "error" in case else [console_line(*row) for row in case["steps"].items()]
                print("\n".join(lines))
                cases.append(case)
                write_measurement(out, {"cases": cases}, options.device)


if __name__ == "__main__":
    main()
