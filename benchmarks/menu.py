"""Every quantizer on one network with one budget, and the post-training passes beside them: top-1 on the test images.

ResNet-20 on CIFAR-10 from the same float weights: 400 steps of 128 images, learning rate 0.01 with a cosine schedule, no
validation, weights of the last step; the first and the last layer have 8 bits. The accuracy is that of the fake-quantized
network in float32.

A cell is one row, policy and seed. Each result is written at once and recorded cells are skipped, so the program can be stopped
at any time; delete results/menu/<row>.json to measure a row again. A cell takes two minutes on two idle threads.

python -m benchmarks.menu --checkpoint resnet20.safetensors --data data/cifar10
python -m benchmarks.menu --checkpoint ... --data ... --rows lsq ewgs --policies w2a2 --seeds 0
"""

from __future__ import annotations

import copy
import json
import re
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import lightning as L
from omegaconf import DictConfig
from torch import nn

from benchmarks.command_line import argument_parser, parse_options
from benchmarks.measurement_file import RESULTS, write_measurement
from qat.data import ImageData
from qat.experiment import build, float_network
from qat.experiment.configuration import compose
from qat.ptq import apply_passes
from qat.report.results.environment import source_state
from qat.training.lightning.quiet import quiet_lightning

ROOT = Path(__file__).parent.parent
POLICIES = ("w4a4", "w3a3", "w2a2")
SEEDS = (0, 1, 2)
STEPS = 400

DISTILLED = ["distillation.weight=1.0", "optim.lr=0.04"]


def _weights(quantizer: str) -> list[str]:
    """Overrides for a quantizer that is for weights only."""
    return [f"policy.weight.quantizer={quantizer}", "policy.first_last_quantizer=LSQ"]


ROWS: dict[str, list[str]] = {
    "lsq": [],
    "lsq, distilled, learning rate 0.04": DISTILLED,
    "lsq, distilled, uncropped": [*DISTILLED, "callbacks.qat.quantizer_lr_ratio=0.3", "data.crop_padding=0"],
    "lsq, progressive": ["progressive={0.0:4,0.15:3,0.3:2}"],
    "lsq_plus": ["quantizer=lsq_plus", "policy.activation.symmetric=false"],
    "ewgs": ["quantizer=ewgs"],
    "dsq": ["quantizer=dsq"],
    "stochastic": ["quantizer=stochastic"],
    "pact": ["quantizer=pact"],
    "sawb + pact": ["quantizer=pact", *_weights("SAWB")],
    "dorefa": ["quantizer=dorefa", "policy.weight.observer=MinMax"],
    "tqt": ["quantizer=tqt"],
    "static": ["quantizer=static"],
    "qil": ["quantizer=qil"],
    "n2uq": ["quantizer=n2uq"],
    "lcq": ["quantizer=lcq"],
    "apot": ["quantizer=apot", "policy.first_last_quantizer=LSQ"],
    "powers_of_two": _weights("PowersOfTwo"),
    "k_means": _weights("KMeans"),
    "nf4": _weights("NF4"),
    "ternary": _weights("Ternary"),
    "binary": _weights("Binary"),
}
"""Name of a row -> overrides of the configuration. "a + b" has one quantizer for weights and one for activations. Otherwise
activations have the same quantizer, or LSQ if it is for weights only."""
LADDER = (
    "PTQ min-max",
    "PTQ percentile",
    "PTQ KL",
    "PTQ MSE",
    "PTQ Hessian MSE",
    "PTQ BatchNorm re-estimation",
    "PTQ folded BatchNorm",
    "PTQ bias correction",
    "PTQ CLE + bias correction",
    "PTQ GPTQ",
    "PTQ AdaRound",
    "PTQ CLE + bias correction + AdaRound",
    "PTQ BRECQ",
    "PTQ QDrop",
)
"""The PTQ rows, named as in configs/ptq/full.yaml, from the least to the most work."""
LADDER_AT_ALL_POLICIES = (
    "PTQ min-max",
    "PTQ MSE",
    "PTQ CLE + bias correction",
    "PTQ AdaRound",
    "PTQ BRECQ",
    "PTQ QDrop",
)
SINGLE_POLICY = {
    "lsq, distilled, uncropped": ("w3a3",),
    "lsq, progressive": ("w2a2",),
    "nf4": ("w4a4",),
    "ternary": ("w2a2",),
    "binary": ("w2a2",),
    **{row: ("w4a4",) for row in LADDER if row not in LADDER_AT_ALL_POLICIES},
}
"""Rows that are measured with one policy: that of the quantizer's width, the one the row was tried with, or w4a4 for passes
that only move ranges."""


def compose_config(row: str, policy: str, seed: int, checkpoint: Path, data: Path) -> DictConfig:
    """Compose the configuration of a cell, as `qat train` does."""
    budget = [f"trainer.max_steps={STEPS}", "optim.lr=0.01", "distillation.weight=0.0", "ptq=full"]
    files = [f"model.checkpoint={checkpoint}", f"data.root={data}", f"seed={seed}"]
    common = ["recipe=cifar10_w2a2", "policy=w2a2", f"policy.preset={policy}", *budget, *files]
    return compose(*common, *ROWS.get(row, []))


def measure_training(config: DictConfig, data: ImageData, network: nn.Module) -> dict[str, Any]:
    """Accuracy and minutes of quantization-aware training, on a copy of the float network."""
    trained, seconds = train(config, data, network)
    return {**test_metrics(trained, config, data), "minutes": round(seconds / 60, 2)}


def train(config: DictConfig, data: ImageData, network: nn.Module) -> tuple[nn.Module, float]:
    """Train a copy of the float network; the result has the weights of the last step. Also the seconds that it took."""
    L.seed_everything(config.seed, workers=True, verbose=False)
    batches = build.datamodule(config, data)
    teacher = build.distillation(config, network, data)
    module = build.classifier(copy.deepcopy(network), config, data, distillation=teacher)
    calibration = batches.calibration_batches(config.calibration_images, seed=config.seed)
    callbacks = [
        build.part(config.callbacks.qat, "callbacks.qat", policy=build.policy(config), batches=calibration),
        build.part(config.callbacks.progressive, "callbacks.progressive"),
    ]
    with tempfile.TemporaryDirectory() as folder, quiet_lightning():
        options = {"enable_checkpointing": False, "limit_val_batches": 0}
        trainer = build.trainer(config, Path(folder), callbacks, False, **options)
        start = time.perf_counter()
        trainer.fit(module, datamodule=batches)
        seconds = time.perf_counter() - start
    return module.network, seconds


def measure_ptq(row: str, config: DictConfig, data: ImageData, network: nn.Module) -> dict[str, Any]:
    """Accuracy and minutes of post-training quantization, with the same network, policy and calibration images."""
    batches = build.datamodule(config, data)
    calibration = batches.calibration_batches(config.calibration_images, seed=config.seed)
    passes = build.part(config.ptq, "ptq").ladder[row]
    start = time.perf_counter()
    quantized = apply_passes(passes, network, build.policy(config), calibration, seed=config.seed)
    seconds = time.perf_counter() - start
    return {**test_metrics(quantized, config, data), "minutes": round(seconds / 60, 2)}


def test_metrics(network: nn.Module, config: DictConfig, data: ImageData) -> dict[str, float]:
    """Top-1 accuracy, a fraction, and cross-entropy on the test images."""
    module = build.classifier(network, config, data)
    with tempfile.TemporaryDirectory() as folder, quiet_lightning():
        trainer = build.trainer(config, Path(folder), [], False, enable_checkpointing=False)
        (metrics,) = trainer.test(module, build.datamodule(config, data), verbose=False)
    return {"top1": metrics["test/top1"], "loss": metrics["test/loss"]}


def missing_cells(
    folder: Path, rows: Sequence[str], policies: Sequence[str], seeds: Sequence[int]
) -> Iterator[tuple[str, str, int]]:
    """Cells that are not recorded yet: (row, policy, seed), the first seed of all rows first."""
    for seed in seeds:
        for row in rows:
            for policy in policies:
                if policy in SINGLE_POLICY.get(row, POLICIES) and _cell_name(policy, seed) not in _read_cells(
                    folder, row
                ):
                    yield row, policy, seed


def write_cell(folder: Path, row: str, policy: str, seed: int, result: dict[str, Any], about: dict[str, Any]) -> None:
    """Add a cell to the file of its row."""
    cell = {**result, "commit": source_state(ROOT / "qat")[0]}
    cells = {**_read_cells(folder, row), _cell_name(policy, seed): cell}
    write_measurement(_path_of_row(folder, row), {"row": row, "steps": STEPS, **about, "cells": cells})


def _cell_name(policy: str, seed: int) -> str:
    return f"{policy}, seed {seed}"


def _path_of_row(folder: Path, row: str) -> Path:
    return folder / f"{re.sub('[^a-z0-9]+', '_', row.lower())}.json"


def _read_cells(folder: Path, row: str) -> dict[str, Any]:
    path = _path_of_row(folder, row)
    cells: dict[str, Any] = json.loads(path.read_text())["cells"] if path.is_file() else {}
    return cells


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("--checkpoint", type=Path, required=True, help="float weights of ResNet-20, .safetensors")
    parser.add_argument("--data", type=Path, required=True, help="folder of CIFAR-10")
    parser.add_argument("--rows", nargs="+", choices=[*ROWS, *LADDER], default=[*ROWS, *LADDER])
    parser.add_argument("--policies", nargs="+", choices=POLICIES, default=POLICIES)
    parser.add_argument("--seeds", nargs="+", type=int, default=SEEDS)
    parser.add_argument(
        "--out", type=Path, default=RESULTS / "menu", help="programs that run at once need one folder each"
    )
    options = parse_options(parser)

    first = compose_config(
        options.rows[0], options.policies[0], 0, options.checkpoint.resolve(), options.data.resolve()
    )
    data: ImageData = build.part(first.data, "data")
    network = float_network.build(first.model, data)
    float_network.check_source(first, data)
    float_network.load_or_train(network, first, data, Path())
    about = {"data": data.label, "test": len(data.test), "float": test_metrics(network, first, data)["top1"]}
    for row, policy, seed in missing_cells(options.out, options.rows, options.policies, options.seeds):
        config = compose_config(row, policy, seed, options.checkpoint.resolve(), options.data.resolve())
        data = build.part(config.data, "data")  # a row may override its options
        result = measure_ptq(row, config, data, network) if row in LADDER else measure_training(config, data, network)
        print(f"{row}, {policy}, seed {seed}: {100 * result['top1']:.2f} %, {result['minutes']} minutes", flush=True)
        write_cell(options.out, row, policy, seed, result, about)


if __name__ == "__main__":
    main()
