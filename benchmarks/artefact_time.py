"""Time from a trained ResNet-20 to a verified file: convert, export, verify; over torch's export of the float network.

About two minutes on two threads of a CPU with `--images 1000`.

python -m benchmarks.artefact_time --threads 2
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

import torch

import qat
from benchmarks.command_line import argument_parser, parse_options
from benchmarks.measurement_file import RESULTS, write_measurement
from benchmarks.timing import ratios_to, time_in_turns
from qat.export import export_float_onnx
from qat.models import ResNetCifar


def stages(folder: Path, images: int, batch: int) -> dict[str, Callable[[], object]]:
    """Every stage from network to verification; each uses the result of the stage before."""
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
        "verify": lambda: _require_exact(qat.verify(file, integer, data)),
    }


def _require_exact(verification: qat.Verification) -> None:
    if not verification.exact:
        raise RuntimeError(f"the file differs from the integer model: {verification}")


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--images", type=int, default=1000, help="number that verification compares")
    parser.add_argument("--batch", type=int, default=100)
    parser.add_argument("--out", type=Path, default=RESULTS / "artefact_time/cpu.json")
    options = parse_options(parser)
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        calls = stages(Path(folder), options.images, options.batch)
        rows = ratios_to("float export", time_in_turns(calls, options.rounds))
    write_measurement(options.out, {"images": options.images, "candidates": rows})
    for name, row in rows.items():
        print(f"{name:14} {row['seconds']:8.3f} s   {row['ratio']:6.2f} x the float export")


if __name__ == "__main__":
    main()
