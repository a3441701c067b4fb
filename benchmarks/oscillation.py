"""Oscillating weights at the end of QAT of a small depthwise network, as they come, dampened, and frozen; several seeds each.

The network has MobileNetV2's blocks. It is trained in float once, and quantized from there with each seed. Accuracy is that of
the last weights on the test images, before and after its BatchNorm statistics are estimated anew (Nagel et al. 2022, section
2.3.1). On CIFAR-10 about ten minutes on one thread of a CPU that does nothing else; without --data on scikit-learn's digits.

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
from torch import Tensor, nn

from benchmarks.record import RESULTS, write
from qat.callbacks import OscillationControl, QuantizationAwareTraining
from qat.data import ImageData, cifar10, digits
from qat.experiment.datamodule import ImageDataModule
from qat.experiment.image_classifier import ImageClassifier
from qat.experiment.learning_rate import cosine
from qat.training.comparison.evaluate import silence

CONTROLS: dict[str, dict[str, Any]] = {
    "nothing": {},
    "dampening": {"dampening": (0.0, 0.1)},
    "freezing": {"freezing": (0.1, 0.01)},
}
"""The schedules of the paper's table 7."""


class Bottleneck(nn.Module):
    """Expand, filter each channel, project; beside a shortcut where the shape stays (Sandler et al. 2018, table 1)."""

    def __init__(self, inputs: int, outputs: int, stride: int, expansion: int = 4) -> None:
        super().__init__()
        width = expansion * inputs
        self.layers = nn.Sequential(
            *_convolution(inputs, width, 1),
            nn.ReLU(),
            *_convolution(width, width, 3, stride, groups=width),
            nn.ReLU(),
            *_convolution(width, outputs, 1),
        )
        self.shortcut = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.layers(x)
        return x + y if self.shortcut else y


class SmallMobileNet(nn.Sequential):
    """(N, channels, H, W) -> (N, classes): five bottlenecks, an eighth of the height and width at the end."""

    def __init__(self, channels: int, classes: int, width: int = 8) -> None:
        super().__init__(
            *_convolution(channels, width, 3, stride=2),
            nn.ReLU(),
            Bottleneck(width, width, 1),
            Bottleneck(width, 2 * width, 2),
            Bottleneck(2 * width, 2 * width, 1),
            Bottleneck(2 * width, 3 * width, 2),
            Bottleneck(3 * width, 3 * width, 1),
            *_convolution(3 * width, 8 * width, 1),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(8 * width, classes),
        )


def _convolution(inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> list[nn.Module]:
    convolution = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
    return [convolution, nn.BatchNorm2d(outputs)]


def fit(module: L.LightningModule, data: ImageDataModule, epochs: int, *callbacks: L.Callback) -> None:
    """Train, and say nothing."""
    with silence(), tempfile.TemporaryDirectory() as folder:
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
    """SGD on a cosine, as the paper."""
    optimizer = partial(torch.optim.SGD, lr=lr, momentum=0.9, weight_decay=1e-4)
    return ImageClassifier(network, classes, optimizer, cosine)


@torch.no_grad()
def top1(network: nn.Module, data: ImageDataModule) -> float:
    """Fraction of the test images."""
    network.eval()
    right = sum(int((network(images).argmax(dim=1) == labels).sum()) for images, labels in data.eval_batches())
    return right / len(data.data.test)


@torch.no_grad()
def estimate_batch_norm(network: nn.Module, data: ImageDataModule) -> None:
    """Statistics of every BatchNorm, in place: the mean over the training batches of an epoch, with the weights as they are."""
    transform = data.data.batch_transform().train()
    norms = [m for m in network.eval().modules() if isinstance(m, nn.BatchNorm2d)]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the plain mean
        norm.train()
    for images, _ in data.train_dataloader():
        network(transform(images))


def quantized(
    network: nn.Module, data: ImageData, seed: int, options: argparse.Namespace, **control: Any
) -> dict[str, Any]:
    """What one fit ends with. Fractions of the weights that are counted, and of the test images."""
    L.seed_everything(seed, verbose=False)
    batches = ImageDataModule(data, options.batch, seed=seed)
    float_batches = batches.calibration_batches(min(500, len(data.train)))
    module = classifier(network, data.num_classes, options.lr)
    counting = OscillationControl(**control)
    start = time.perf_counter()
    fit(module, batches, options.epochs, QuantizationAwareTraining(options.policy, batches=float_batches), counting)
    seconds = time.perf_counter() - start
    found = counting.report
    assert found is not None
    depthwise = {n for n, m in network.named_modules() if isinstance(m, nn.Conv2d) and m.groups > 1}
    layers = [layer for layer in found.layers if layer.layer in depthwise]
    before = top1(network, batches)
    estimate_batch_norm(network, batches)
    return {
        "seed": seed,
        "oscillating": found.oscillating,
        "frozen": found.frozen,
        "oscillating_depthwise": sum(x.oscillating for x in layers) / sum(x.weights for x in layers),
        "frozen_depthwise": sum(x.frozen for x in layers) / sum(x.weights for x in layers),
        "top1": before,
        "top1_after_estimation": top1(network, batches),
        "seconds": seconds,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder of CIFAR-10 or its copy; default: scikit-learn's digits")
    parser.add_argument("--images", type=int, default=6_000, help="training images, at most")
    parser.add_argument("--test-images", type=int, default=2_000, help="at most")
    parser.add_argument("--policy", default="w3a8")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--float-epochs", type=int, default=10)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--lr", type=float, default=0.02)
    parser.add_argument("--width", type=int, default=8)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path, default=RESULTS / "oscillation/cpu.json")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
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
            rows[name].append(quantized(fresh, data, seed, options, **control))
            write(options.out, {**about, "controls": rows})
            print(name, {key: round(value, 4) for key, value in rows[name][-1].items()}, flush=True)


if __name__ == "__main__":
    main()
