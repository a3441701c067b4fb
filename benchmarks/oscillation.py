"""Oscillating weights at the end of QAT of a small depthwise network: untreated, dampened and frozen, with several seeds.

The network has MobileNetV2's blocks. It is trained in float once, and quantized from there with each seed. Accuracy is that of
the last weights on the test images, before and after the BatchNorm statistics are re-estimated (Nagel et al. 2022, section
2.3.1). On CIFAR-10 about ten minutes on one idle thread of a CPU; without --data it uses scikit-learn's digits.

python -m benchmarks.oscillation --data /data --threads 1
"""

from __future__ import annotations

import argparse
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch import nn

from benchmarks.command_line import argument_parser, parse_options
from benchmarks.measurement_file import RESULTS, write_measurement
from benchmarks.small_mobilenet import SmallMobileNet
from qat.callbacks import OscillationControl, QuantizationAwareTraining
from qat.data import ImageData, cifar10, digits
from qat.experiment.datamodule import ImageDataModule
from qat.experiment.image_classifier import ImageClassifier
from qat.experiment.learning_rate import warmup_cosine
from qat.training.lightning.quiet import quiet_lightning

CONTROLS: dict[str, dict[str, Any]] = {
    "nothing": {},
    "dampening": {"dampening": (0.0, 0.1)},
    "freezing": {"freezing": (0.1, 0.01)},
}
"""Options of `OscillationControl`: the schedules of the paper's table 7."""


def fit(module: L.LightningModule, data: ImageDataModule, epochs: int, *callbacks: L.Callback) -> None:
    """Train without any output."""
    with quiet_lightning(), tempfile.TemporaryDirectory() as folder:
        L.Trainer(
            max_epochs=epochs,
            accelerator="cpu",
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            limit_val_batches=0,
            num_sanity_val_steps=0,
            default_root_dir=folder,
            callbacks=list(callbacks),
        ).fit(module, datamodule=data)


def classifier(network: nn.Module, classes: int, lr: float) -> ImageClassifier:
    """Training with SGD and a cosine schedule, as in the paper."""
    optimizer = partial(torch.optim.SGD, lr=lr, momentum=0.9, weight_decay=1e-4)
    return ImageClassifier(network, classes, optimizer, warmup_cosine)


@torch.no_grad()
def top1(network: nn.Module, data: ImageDataModule) -> float:
    """Fraction of the test images that are classified correctly."""
    network.eval()
    correct = sum(int((network(images).argmax(dim=1) == labels).sum()) for images, labels in data.eval_batches())
    return correct / len(data.data.test)


@torch.no_grad()
def reestimate_batch_norm(network: nn.Module, data: ImageDataModule) -> None:
    """Replace the statistics of every BatchNorm by their means over the training batches of one epoch."""
    transform = data.data.batch_transform().train()
    norms = [m for m in network.eval().modules() if isinstance(m, nn.BatchNorm2d)]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a plain mean, not a moving average
        norm.train()
    for images, _ in data.train_dataloader():
        network(transform(images))


def measure_quantized(
    network: nn.Module, data: ImageData, seed: int, options: argparse.Namespace, **control: Any
) -> dict[str, Any]:
    """Train one quantized network; return fractions of the weights and of the test images."""
    L.seed_everything(seed, verbose=False)
    batches = ImageDataModule(data, options.batch, seed=seed)
    calibration = batches.calibration_batches(min(500, len(data.train)))
    module = classifier(network, data.num_classes, options.lr)
    oscillation_control = OscillationControl(**control)
    start = time.perf_counter()
    training = QuantizationAwareTraining(options.policy, batches=calibration)
    fit(module, batches, options.epochs, training, oscillation_control)
    seconds = time.perf_counter() - start
    oscillations = oscillation_control.report
    assert oscillations is not None
    depthwise = {n for n, m in network.named_modules() if isinstance(m, nn.Conv2d) and m.groups > 1}
    layers = [layer for layer in oscillations.layers if layer.layer in depthwise]
    top1_before = top1(network, batches)
    reestimate_batch_norm(network, batches)
    return {
        "seed": seed,
        "oscillating": oscillations.oscillating,
        "frozen": oscillations.frozen,
        "oscillating_depthwise": sum(x.oscillating for x in layers) / sum(x.weights for x in layers),
        "frozen_depthwise": sum(x.frozen for x in layers) / sum(x.weights for x in layers),
        "top1": top1_before,
        "top1_after_estimation": top1(network, batches),
        "seconds": seconds,
    }


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("--data", type=Path, help="folder of CIFAR-10 or its copy; default: scikit-learn's digits")
    parser.add_argument("--images", type=int, default=6_000, help="largest number of training images")
    parser.add_argument("--test-images", type=int, default=2_000, help="largest number of test images")
    parser.add_argument("--policy", default="w3a8")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--float-epochs", type=int, default=10)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--lr", type=float, default=0.02)
    parser.add_argument("--width", type=int, default=8)
    parser.add_argument("--out", type=Path, default=RESULTS / "oscillation/cpu.json")
    options = parse_options(parser)
    if options.data is None:
        data = digits(limit_train=min(options.images, 1_167))
    else:
        data = cifar10(options.data, limit_train=options.images, limit_test=options.test_images)

    L.seed_everything(0, verbose=False)
    network = SmallMobileNet(data.image_shape[0], data.num_classes, options.width)
    batches = ImageDataModule(data, options.batch)
    fit(classifier(network, data.num_classes, 5 * options.lr), batches, options.float_epochs)
    float_state = network.state_dict()
    about = {
        "data": data.label,
        "images": len(data.train),
        "test_images": len(data.test),
        "float_top1": top1(network, batches),
        "policy": options.policy,
        "float_epochs": options.float_epochs,
        "epochs": options.epochs,
        "batch": options.batch,
        "steps": options.epochs * len(batches.train_dataloader()),
        "lr": options.lr,
    }
    print(f"float: {100 * about['float_top1']:.2f} % of {len(data.test):,} test images", flush=True)
    rows: dict[str, list[dict[str, Any]]] = {name: [] for name in CONTROLS}
    for seed in options.seeds:
        for name, control in CONTROLS.items():
            fresh = SmallMobileNet(data.image_shape[0], data.num_classes, options.width)
            fresh.load_state_dict(float_state)
            rows[name].append(measure_quantized(fresh, data, seed, options, **control))
            write_measurement(options.out, {**about, "controls": rows})
            print(name, {key: round(value, 4) for key, value in rows[name][-1].items()}, flush=True)


if __name__ == "__main__":
    main()
