"""Every quantizer on one network with one budget, and the post-training passes beside them: top-1 on the test images.

ResNet-20 on CIFAR-10 from the same float weights: 400 steps of 128 images, learning rate 0.01, a cosine, no validation,
the last step counts; the first and the last layer have 8 bits. What is measured is the fake-quantized network in float32.

Each result is written as soon as it is there, and what is recorded is not run again, so that it can be stopped at any time;
delete results/menu/<row>.json to measure a row anew. A cell takes two minutes on two quiet threads of a CPU.

python -m benchmarks.menu --checkpoint resnet20.safetensors --data data/cifar10
python -m benchmarks.menu --checkpoint ... --data ... --rows lsq ewgs --policies w2a2 --seeds 0
"""

from __future__ import annotations

import argparse
import copy
import json
import re
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import lightning as L
import torch
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig
from torch import nn

from benchmarks.record import RESULTS, write
from qat.data import ImageData
from qat.experiment import build, float_network
from qat.ptq import apply_passes
from qat.report.environment import source_state
from qat.training.comparison.evaluate import silence

ROOT = Path(__file__).parent.parent
POLICIES = ("w4a4", "w3a3", "w2a2")
SEEDS = (0, 1, 2)
STEPS = 400

DISTILLED = ["distillation.weight=1.0", "optim.lr=0.04"]


def _weights(quantizer: str) -> list[str]:
    """A quantizer for weights alone."""
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
"""What is named, and what it changes in the configuration. Where a name has no " + ", activations are quantized by the same
quantizer, or by LSQ if it is for weights alone."""
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
"""The lists of configs/ptq/full.yaml, from the least to the most work."""
EVERYWHERE = ("PTQ min-max", "PTQ MSE", "PTQ CLE + bias correction", "PTQ AdaRound", "PTQ BRECQ", "PTQ QDrop")
ONLY = {
    "lsq, distilled, uncropped": ("w3a3",),
    "lsq, progressive": ("w2a2",),
    "nf4": ("w4a4",),
    "ternary": ("w2a2",),
    "binary": ("w2a2",),
    **{row: ("w4a4",) for row in LADDER if row not in EVERYWHERE},
}
"""Rows that are measured at one width: that of the quantizer, the one where the row was tried, or the one where passes that
move ranges alone are at home.
"""


def composed(row: str, policy: str, seed: int, checkpoint: Path, data: Path) -> DictConfig:
    """The configuration of a cell, as train.py would compose it."""
    budget = [f"trainer.max_steps={STEPS}", "optim.lr=0.01", "distillation.weight=0.0", "ptq=full"]
    files = [f"model.checkpoint={checkpoint}", f"data.root={data}", f"seed={seed}"]
    common = ["recipe=cifar10_w2a2", "policy=w2a2", f"policy.preset={policy}", *budget, *files]
    with initialize_config_dir(str(ROOT / "configs"), version_base="1.3"):
        return compose("config", overrides=[*common, *ROWS.get(row, [])])


def trained(config: DictConfig, data: ImageData, network: nn.Module) -> dict[str, Any]:
    """Quantization-aware training of a copy of the float network."""
    L.seed_everything(config.seed, workers=True, verbose=False)
    batches = build.datamodule(config, data)
    teacher = build.distillation(config, network)
    module = build.classifier(copy.deepcopy(network), config, data, distillation=teacher)
    calibration = batches.calibration_batches(config.calibration_images, seed=config.seed)
    callbacks = [
        build.part(config.callbacks.qat, "callbacks.qat", policy=build.policy(config), batches=calibration),
        build.part(config.callbacks.progressive, "callbacks.progressive"),
    ]
    with tempfile.TemporaryDirectory() as folder, silence():
        options = {"enable_checkpointing": False, "limit_val_batches": 0}
        trainer = build.trainer(config, Path(folder), callbacks, False, **options)
        start = time.perf_counter()
        trainer.fit(module, datamodule=batches)
        seconds = time.perf_counter() - start
    return {**tested(module.network, config, data), "minutes": round(seconds / 60, 2)}


def post_trained(row: str, config: DictConfig, data: ImageData, network: nn.Module) -> dict[str, Any]:
    """The same network, policy and calibration images without training."""
    batches = build.datamodule(config, data)
    calibration = batches.calibration_batches(config.calibration_images, seed=config.seed)
    passes = build.part(config.ptq, "ptq").ladder[row]
    start = time.perf_counter()
    quantized = apply_passes(passes, network, build.policy(config), calibration, seed=config.seed)
    seconds = time.perf_counter() - start
    return {**tested(quantized, config, data), "minutes": round(seconds / 60, 2)}


def tested(network: nn.Module, config: DictConfig, data: ImageData) -> dict[str, float]:
    """Top-1, a fraction, and cross entropy on the test images."""
    module = build.classifier(network, config, data)
    with tempfile.TemporaryDirectory() as folder, silence():
        trainer = build.trainer(config, Path(folder), [], False, enable_checkpointing=False)
        (metrics,) = trainer.test(module, build.datamodule(config, data), verbose=False)
    return {"top1": metrics["test/top1"], "loss": metrics["test/loss"]}


def missing(
    folder: Path, rows: Sequence[str], policies: Sequence[str], seeds: Sequence[int]
) -> Iterator[tuple[str, str, int]]:
    """Cells that are not recorded yet, the first seed of everything first."""
    for seed in seeds:
        for row in rows:
            for policy in policies:
                if policy in ONLY.get(row, POLICIES) and _name(policy, seed) not in _cells(folder, row):
                    yield row, policy, seed


def record(folder: Path, row: str, policy: str, seed: int, found: dict[str, Any], about: dict[str, Any]) -> None:
    """Add a cell to the row's file."""
    cells = {**_cells(folder, row), _name(policy, seed): {**found, "commit": source_state(ROOT / "qat")[0]}}
    write(_path(folder, row), {"row": row, "steps": STEPS, **about, "cells": cells})


def _name(policy: str, seed: int) -> str:
    return f"{policy}, seed {seed}"


def _path(folder: Path, row: str) -> Path:
    return folder / f"{re.sub('[^a-z0-9]+', '_', row.lower())}.json"


def _cells(folder: Path, row: str) -> dict[str, Any]:
    path = _path(folder, row)
    found: dict[str, Any] = json.loads(path.read_text())["cells"] if path.is_file() else {}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, required=True, help="float weights of ResNet-20, .safetensors")
    parser.add_argument("--data", type=Path, required=True, help="folder of CIFAR-10")
    parser.add_argument("--rows", nargs="+", choices=[*ROWS, *LADDER], default=[*ROWS, *LADDER])
    parser.add_argument("--policies", nargs="+", choices=POLICIES, default=POLICIES)
    parser.add_argument("--seeds", nargs="+", type=int, default=SEEDS)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path, default=RESULTS / "menu", help="two at once: a folder for each")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)

    first = composed(given.rows[0], given.policies[0], 0, given.checkpoint.resolve(), given.data.resolve())
    data: ImageData = build.part(first.data, "data")
    network = float_network.build(first.model, data)
    float_network.check_source(first, data)
    float_network.load_or_train(network, first, data, Path())
    about = {"data": data.label, "test": len(data.test), "float": tested(network, first, data)["top1"]}
    for row, policy, seed in missing(given.out, given.rows, given.policies, given.seeds):
        config = composed(row, policy, seed, given.checkpoint.resolve(), given.data.resolve())
        data = build.part(config.data, "data")  # rows may change it
        found = post_trained(row, config, data, network) if row in LADDER else trained(config, data, network)
        print(f"{row}, {policy}, seed {seed}: {100 * found['top1']:.2f} %, {found['minutes']} minutes", flush=True)
        record(given.out, row, policy, seed, found, about)


if __name__ == "__main__":
    main()
