"""Mixed bits against uniform bits of the same size, ResNet-20 on CIFAR-10, without training: what the search alone brings.

python -m benchmarks.mixed_without_training CHECKPOINT DATA        # resnet20.safetensors, the folder of CIFAR-10; minutes

Both networks have the ranges of the MSE observer on the same calibration images; the paired comparison is McNemar's.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from benchmarks.measurement_file import RESULTS, write_measurement
from qat.experiment import build, float_network
from qat.experiment.configuration import compose
from qat.integer import stored_bytes
from qat.models import load_weights
from qat.ptq import Calibrate, apply_passes
from qat.report.judgement.paired import mcnemar
from qat.search import allocate

FILE = "mixed_precision/cifar10_without_training.json"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("--out", type=Path, default=RESULTS / FILE)
    options = parser.parse_args()
    config = compose("recipe=cifar10_mixed_w3", f"data.root={options.data}")
    data = build.part(config.data, "data")
    network = float_network.build(config.model, data).eval()
    load_weights(network, options.checkpoint)
    batches = build.datamodule(config, data)
    calibration = batches.calibration_batches(config.calibration_images, seed=config.seed)
    start = time.perf_counter()
    uniform = build.policy(config)
    found = allocate(network, uniform, calibration, size=config.budget.size, points=0)
    seconds = time.perf_counter() - start
    correct: dict[str, NDArray[np.bool_]] = {"float": _correct(network, batches)}
    sizes = {}
    for name, policy in {"uniform": uniform, "mixed": found.policy}.items():
        quantized = apply_passes([Calibrate("MSE")], network, policy, calibration)
        correct[name], sizes[name] = _correct(quantized, batches), stored_bytes(quantized)
    difference = mcnemar(correct["mixed"], correct["uniform"])
    print({name: float(right.mean()) for name, right in correct.items()}, sizes, difference)
    measurement: dict[str, Any] = {
        "data": data.label,
        "test": len(data.test),
        "policy": uniform.name,
        "top1": {name: float(right.mean()) for name, right in correct.items()},
        "stored_bytes": sizes,
        "difference": asdict(difference),
        "bits": {layer.layer: layer.weight_bits for layer in found.record.layers},
        "search_seconds": seconds,
    }
    write_measurement(options.out, measurement)


@torch.no_grad()
def _correct(network: nn.Module, batches: Any) -> NDArray[np.bool_]:
    """Which test images the network has right, bool (n,)."""
    found = [network(images).argmax(1) == labels for images, labels in batches.eval_batches("test")]
    return torch.cat(found).numpy()


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
