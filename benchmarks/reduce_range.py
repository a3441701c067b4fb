"""What 7-bit weights cost, for processors that add products in 16 bits (no VNNI): ResNet-20, calibrated. Minutes.

python -m benchmarks.reduce_range --checkpoint resnet20.safetensors --data cifar10/
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import qat
from benchmarks.command_line import argument_parser, parse_options
from benchmarks.markdown_table import markdown_table
from benchmarks.measurement_file import RESULTS, write_measurement
from benchmarks.program_tables import NOT_MEASURED, with_source
from qat.data import cifar10
from qat.export import OnnxRuntimeNetwork
from qat.export.onnx.onnx_file import read_onnx
from qat.export.onnx.runtime import feeds, session
from qat.export.onnx.saturation import could_saturate
from qat.export.stopwatch import time_in_turns
from qat.models import ResNetCifar, load_weights

POLICIES = ("w8a8", "w7a8")
BATCH = 100


def prepared_files(options: argparse.Namespace, folder: Path) -> tuple[dict[str, Path], dict[str, int], Tensor, Tensor]:
    """The files, how many of their layers may saturate, and the test set."""
    model = ResNetCifar(20).eval()
    load_weights(model, options.checkpoint)
    data = cifar10(options.data, limit_train=options.calibration, limit_test=options.images)
    transform = data.batch_transform().eval()
    train, test = (
        transform(torch.stack([split[i][0] for i in range(min(len(split), count))]))
        for split, count in ((data.train, options.calibration), (data.test, options.images))
    )
    labels = torch.tensor([int(data.test[i][1]) for i in range(len(test))])
    files, saturating = {}, {}
    for policy in POLICIES:
        prepared = qat.prepare(model, policy, train[:1])
        qat.calibrate(prepared, [train])
        integer = qat.convert(prepared)
        saturating[policy] = sum(bool(getattr(m, "may_saturate", False)) for m in integer.modules())
        files[policy] = folder / f"{policy}.onnx"
        qat.export_onnx(integer, train[:1], files[policy])
    return files, saturating, test, labels


def top1(path: Path, images: Tensor, labels: Tensor) -> float:
    """Share of the images that the file classifies rightly, in ONNX Runtime."""
    network = OnnxRuntimeNetwork(path, threads=1)
    right = [network(x).argmax(1) == y for x, y in zip(images.split(BATCH), labels.split(BATCH), strict=True)]
    return float(torch.cat(right).float().mean())


def slow_sums(path: Path, x: Tensor, rounds: int) -> float:
    """The time of the exact sums of processors without VNNI over that of plain ones, on this processor."""
    calls = {}
    for name, exact in (("plain", False), ("exact", True)):
        opened = session(path, threads=1, exact_sums=exact)
        calls[name] = partial(opened.run, None, feeds(opened, (x,)))
    times = time_in_turns(calls, rounds, clock=time.process_time)
    return times["exact"].fastest / times["plain"].fastest


def table(measurement: Mapping[str, Any] | None) -> str:
    """The table of docs/targets.md."""
    if measurement is None:
        return NOT_MEASURED
    rows = [
        [
            f"`{case['policy']}`",
            f"{100 * case['top1']:.2f}",
            f"{case['saturating_layers']}",
            "set" if case["needs_exact_sums"] else "not set",
            f"{case['time_of_exact_sums']:.2f}",
        ]
        for case in measurement["cases"]
    ]
    header = ("policy", "top-1 %", "layers that may saturate", "option without VNNI", "time with it, of that without")
    return with_source(markdown_table(header, rows, text_columns=1), measurement)


def main() -> None:
    parser = argument_parser(__doc__)
    parser.set_defaults(threads=1)
    parser.add_argument("--checkpoint", type=Path, required=True, help="weights of ResNet-20 for CIFAR-10")
    parser.add_argument("--data", type=Path, required=True, help="folder of CIFAR-10")
    parser.add_argument("--calibration", type=int, default=512, help="images to calibrate with")
    parser.add_argument("--images", type=int, default=10_000, help="of the test set")
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--out", type=Path, default=RESULTS / "reduce_range/cpu.json")
    options = parse_options(parser)
    with tempfile.TemporaryDirectory() as folder:
        files, saturating, images, labels = prepared_files(options, Path(folder))
        cases: list[dict[str, Any]] = [
            {
                "policy": policy,
                "top1": top1(path, images, labels),
                "saturating_layers": saturating[policy],
                "needs_exact_sums": could_saturate(read_onnx(path)),
                "time_of_exact_sums": slow_sums(path, images[:1], options.rounds),
            }
            for policy, path in files.items()
        ]
    write_measurement(options.out, {"cases": cases})
    for case in cases:
        print(case)


if __name__ == "__main__":
    main()
