"""Seconds from a trained ResNet-20 to a proven file: convert, export, verify; over torch's own export of the float network.

About two minutes on two threads of a CPU with `--images 1000`.

python -m benchmarks.artefact_time --threads 2
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch

import qat
from benchmarks.measure import interleaved, ratios
from benchmarks.record import RESULTS, write
from qat.export import export_float_onnx
from qat.models import ResNetCifar


def work(folder: Path, images: int, batch: int) -> dict[str, Callable[[], object]]:
    """Each step from network to proof; every one starts from what the step before it left."""
    network = ResNetCifar(20).eval()
    example = torch.randn(1, 3, 32, 32)
    data = list(torch.randn(images, 3, 32, 32).split(batch))
    prepared = qat.prepare(network, "w8a8")
    qat.calibrate(prepared, data[:1])
    integer = qat.convert(prepared.eval())
    file = folder / "model.onnx"
    return {
        "float export": lambda: export_float_onnx(network, example, folder / "float.onnx"),
        "convert": lambda: qat.convert(prepared),
        "export": lambda: qat.export_onnx(integer, example, file),
        "verify": lambda: _exact(qat.verify(file, integer, data)),
    }


def _exact(check: qat.Verification) -> None:
    if not check.exact:
        raise RuntimeError(f"the file differs from the integer model: {check}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--images", type=int, default=1000, help="that verification compares")
    parser.add_argument("--batch", type=int, default=100)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path, default=RESULTS / "artefact_time/cpu.json")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        calls = work(Path(folder), options.images, options.batch)
        rows = ratios(interleaved(calls, options.rounds), "float export")
    write(options.out, {"images": options.images, "candidates": rows})
    for name, row in rows.items():
        print(f"{name:14} {row['seconds']:8.3f} s   {row['ratio']:6.2f} x the float export")


if __name__ == "__main__":
    main()
