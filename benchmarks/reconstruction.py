"""AdaRound and BRECQ on ResNet-20: processor time of the pass, and top-1 of its result on test images.

The time is that of the whole process (all threads) inside the pass, without the calibration that comes first; the accuracy is
that of the fake-quantized network. `--name` is that of the results file, so that two commits can stand beside each other.
Recorded cells are kept.

python -m benchmarks.reconstruction --checkpoint resnet20.safetensors --data data/cifar10 --threads 1
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.command_line import argument_parser, parse_options
from benchmarks.markdown_table import markdown_table
from benchmarks.measurement_file import RESULTS, write_measurement
from benchmarks.menu import compose_config
from benchmarks.program_tables import NOT_MEASURED, Measurement, read_measurement, with_source
from qat.data import ImageData
from qat.experiment import build, float_network
from qat.models import load_weights
from qat.ptq import BRECQ, AdaRound, Calibrate, Pass, apply_passes
from qat.ptq.state import PTQState

PASSES: dict[str, Callable[[], Pass]] = {"AdaRound": AdaRound, "BRECQ": BRECQ}


class Timed(Pass):
    """A pass of the same kind that keeps the processor seconds of its work."""

    rounds_weights = True
    seconds = 0.0

    def __init__(self, inner: Pass) -> None:
        self.inner = inner

    def apply(self, state: PTQState) -> None:
        start = time.process_time()
        self.inner.apply(state)
        self.seconds = time.process_time() - start


def measure(name: str, network: nn.Module, policy: Any, batches: Any, seed: int, test: list[Any]) -> dict[str, float]:
    """Processor seconds of the pass called `name`, and top-1 on `test`, a fraction."""
    timed = Timed(PASSES[name]())
    quantized = apply_passes([Calibrate("MSE"), timed], network, policy, batches, seed=seed)
    return {"processor_seconds": timed.seconds, "top1": top1(quantized, test)}


@torch.no_grad()
def top1(network: nn.Module, test: list[Any]) -> float:
    """Accuracy on (images, labels), a fraction."""
    right = torch.cat([network(images).argmax(1) == labels for images, labels in test])
    return float(right.float().mean())


def table(before: Measurement | None, after: Measurement | None) -> str:
    """Processor time and accuracy of two commits, cell by cell; a cell that only one of them has is left out."""
    if before is None or after is None:
        return NOT_MEASURED
    cells = {(c["pass"], c["policy"], c["seed"]): c for c in before["cells"]}
    rows = []
    for cell in after["cells"]:
        old = cells.get((cell["pass"], cell["policy"], cell["seed"]))
        if old is not None:
            seconds = old["processor_seconds"], cell["processor_seconds"]
            named = [cell["pass"], cell["policy"], str(cell["seed"])]
            times = [f"{seconds[0]:.0f}", f"{seconds[1]:.0f}", f"{seconds[0] / seconds[1]:.1f}"]
            rows.append([*named, *times, *(f"{100 * c['top1']:.2f}" for c in (old, cell))])
    header = ("pass", "policy", "seed", "seconds before", "seconds now", "ratio", "top-1 % before", "top-1 % now")
    return with_source(markdown_table(header, rows, text_columns=3), after)


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("--checkpoint", type=Path, required=True, help="float weights of ResNet-20, .safetensors")
    parser.add_argument("--data", type=Path, required=True, help="folder of CIFAR-10")
    parser.add_argument("--passes", nargs="+", choices=PASSES, default=list(PASSES))
    parser.add_argument("--policies", nargs="+", default=["w4a4", "w2a2"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1])
    parser.add_argument("--images", type=int, default=2000, help="test images")
    parser.add_argument("--name", default="cpu", help="of the results file")
    parser.add_argument("--out", type=Path, help="default: results/reconstruction/<name>.json")
    options = parse_options(parser)
    if options.images < 1:
        raise SystemExit(f"--images {options.images}: write 1 or more.")
    out = options.out or RESULTS / f"reconstruction/{options.name}.json"
    recorded = read_measurement(out)
    cells: list[dict[str, Any]] = list(recorded["cells"]) if recorded else []
    known = {(cell["pass"], cell["policy"], cell["seed"]) for cell in cells}
    first = compose_config("PTQ MSE", options.policies[0], 0, options.checkpoint.resolve(), options.data.resolve())
    data: ImageData = build.part(first.data, "data")
    network = float_network.build(first.model, data).eval()
    load_weights(network, options.checkpoint)
    images = [torch.cat(part) for part in zip(*build.datamodule(first, data).eval_batches("test"), strict=True)]
    step = len(images[0]) // options.images  # the images are sorted by class
    test = list(zip(*(part[::step][: options.images].split(500) for part in images), strict=True))
    for seed in options.seeds:
        for policy in options.policies:
            config = compose_config("PTQ MSE", policy, seed, options.checkpoint.resolve(), options.data.resolve())
            calibration = build.datamodule(config, data).calibration_batches(config.calibration_images, seed=seed)
            for name in options.passes:
                if (name, policy, seed) in known:
                    continue
                found = measure(name, network, build.policy(config), calibration, seed, test)
                cells.append({"pass": name, "policy": policy, "seed": seed, **found})
                print(cells[-1], flush=True)
                write_measurement(
                    out, {"data": data.label, "test": sum(len(labels) for _, labels in test), "cells": cells}
                )


if __name__ == "__main__":
    main()
