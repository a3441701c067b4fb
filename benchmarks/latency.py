"""Latency of int8 files over their float files in ONNX Runtime, in turns; a few seconds per file.

python -m benchmarks.latency                           # networks of this list, quantized on noise, see --networks
python -m benchmarks.latency --networks resnet18       # one of them
python -m benchmarks.latency outputs/cifar10_*         # folders that hold model.onnx and float.onnx

One thread, and the fastest call in processor time, so that other programs count little. Random weights take as long as
trained ones.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import onnx
import torch
from torch import Tensor, nn

import qat
from benchmarks.command_line import argument_parser, parse_options
from benchmarks.measurement_file import RESULTS, write_measurement
from qat.export import export_float_onnx
from qat.export.onnx.runtime import operator_shares, time_files
from qat.models import LeNet5, ResNetCifar, torchvision_model

POLICIES = ("w8a8", "w4a4", "w2a2")
OWN: dict[str, tuple[type[nn.Module], dict[str, Any], tuple[int, ...]]] = {
    "resnet20": (ResNetCifar, {"depth": 20}, (3, 32, 32)),
    "lenet5": (LeNet5, {}, (1, 28, 28)),
    "digits": (ResNetCifar, {"depth": 8, "in_channels": 1}, (1, 8, 8)),
    "digits_narrow": (ResNetCifar, {"depth": 8, "width": 8, "in_channels": 1}, (1, 8, 8)),
}
"""Network -> class, options, and shape of an image."""
OF_TORCHVISION = ("resnet18", "resnet50", "mobilenet_v2")
LARGE = (3, 224, 224)
NAMED = 3


def network(name: str) -> tuple[nn.Module, Tensor]:
    """A network with random weights, and a batch of noise."""
    torch.manual_seed(0)
    if name in OF_TORCHVISION:
        return torchvision_model(name, num_classes=1000).eval(), torch.randn(2, *LARGE)
    kind, options, shape = OWN[name]
    return kind(**options).eval(), torch.randn(16, *shape)


def write_files(name: str, folder: Path) -> dict[str, Path]:
    """The float file, and one for each policy. First ranges are the cheapest: they take no part in the latency."""
    model, x = network(name)
    files = {"float": folder / "float.onnx"}
    export_float_onnx(model, x[:1], files["float"])
    for policy in POLICIES:
        cheap = {"observer": "MinMax"}
        prepared = qat.prepare(model, qat.load_policy({"preset": policy, "weight": cheap, "activation": cheap}), x[:1])
        qat.calibrate(prepared, [x])
        files[policy] = folder / f"{policy}.onnx"
        qat.export_onnx(qat.convert(prepared), x[:1], files[policy])
    return files


def measure(files: Mapping[str, Path], batches: tuple[int, ...], rounds: int, threads: int) -> dict[str, Any]:
    """Milliseconds of each file and, of all but the float one, over those of the float file; where their time goes."""
    shape = [d.dim_value for d in onnx.load(files["float"]).graph.input[0].type.tensor_type.shape.dim[1:]]
    x = torch.randn(1, *shape)
    timings = time_files(files, x, batches, rounds, threads, time.process_time)
    milliseconds = {name: {batch: t.fastest for batch, t in of_file.items()} for name, of_file in timings.items()}
    others = [name for name in files if name != "float"]
    return {
        "milliseconds": milliseconds,
        "ratio": {
            name: {batch: milliseconds[name][batch] / milliseconds["float"][batch] for batch in batches}
            for name in others
        },
        "slowest": {
            name: dict(list(operator_shares(files[name], (x,), batches[-1], threads=threads).items())[:NAMED])
            for name in others
        },
    }


def cases(options: argparse.Namespace, folder: Path) -> Iterator[tuple[str, dict[str, Path], tuple[int, ...]]]:
    """Name, files and sizes of the batch: of folders, or of the list."""
    for run in options.folders:
        yield run.name, {"float": run / "float.onnx", "int8": run / "model.onnx"}, (1, 32)
    for name in [] if options.folders else options.networks:
        (folder / name).mkdir()
        yield name, write_files(name, folder / name), (1,) if name in OF_TORCHVISION else (1, 32)


def main() -> None:
    parser = argument_parser(__doc__)
    parser.set_defaults(threads=1)
    parser.add_argument("folders", type=Path, nargs="*")
    parser.add_argument("--networks", nargs="+", default=[*OWN, *OF_TORCHVISION], choices=[*OWN, *OF_TORCHVISION])
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--out", type=Path, default=RESULTS / "latency/cpu.json")
    options = parse_options(parser)
    runs = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, files, batches in cases(options, Path(folder)):
            runs[name] = measure(files, batches, options.rounds, options.threads)
            for policy, ratio in runs[name]["ratio"].items():
                text = "   ".join(f"batch {size}: {value:.2f} x" for size, value in ratio.items())
                print(f"{name:16} {policy:6} {text}", flush=True)
            write_measurement(options.out, {"latency": runs})  # what is there, if somebody stops it


if __name__ == "__main__":
    main()
