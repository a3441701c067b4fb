"""Cost against depth and width: processor time of prepare, calibrate, a step, convert, export and verify.

Chains of convolution, BatchNorm and ReLU on tiny images: what is measured is the work for each layer, not arithmetic.
Linear cost is the same time per layer at every depth. Each size is prepared once beforehand, because the first call imports.

python -m benchmarks.scale --threads 1
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

import qat
from benchmarks.command_line import argument_parser, parse_options
from benchmarks.markdown_table import markdown_table
from benchmarks.measurement_file import RESULTS, write_measurement
from benchmarks.program_tables import NOT_MEASURED, Measurement, with_source

STAGES = ("prepare", "calibrate", "step", "convert", "export", "verify")


def chain(depth: int, width: int) -> nn.Module:
    """`depth` convolutions of `width` channels, and a linear layer: (N, width, 8, 8) -> (N, 10)."""
    blocks = [(nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()) for _ in range(depth)]
    return nn.Sequential(*(m for block in blocks for m in block), nn.Flatten(), nn.Linear(64 * width, 10))


def measure(depth: int, width: int) -> dict[str, float]:
    """Processor seconds of every stage."""
    torch.manual_seed(0)
    network, x = chain(depth, width), torch.randn(2, width, 8, 8)
    seconds: dict[str, float] = {}

    def timed(stage: str, work: Callable[[], Any]) -> Any:
        start = time.process_time()
        result = work()
        seconds[stage] = time.process_time() - start
        return result

    prepared = timed("prepare", lambda: qat.prepare(network, "w4a8", x))
    timed("calibrate", lambda: qat.calibrate(prepared, [x]))
    prepared.train()(x).sum().backward()
    timed("step", lambda: prepared(x).sum().backward())
    integer = timed("convert", lambda: qat.convert(prepared.eval()))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        timed("export", lambda: qat.export_onnx(integer, x, path))
        timed("verify", lambda: qat.verify(path, integer, [x]))
    return seconds


def table(measurement: Measurement | None) -> str:
    """Milliseconds per layer."""
    if measurement is None:
        return NOT_MEASURED
    rows = [
        [str(c["depth"]), str(c["width"]), *(f"{1000 * c['seconds'][s] / c['depth']:.1f}" for s in STAGES)]
        for c in measurement["cases"]
    ]
    header = ("layers", "channels", *(f"{stage}, ms per layer" for stage in STAGES))
    return with_source(markdown_table(header, rows, text_columns=0), measurement)


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("--depths", nargs="+", type=int, default=[8, 25, 50, 100, 200])
    parser.add_argument(
        "--widths", nargs="+", type=int, default=[4, 16, 64], help="of 25 layers; depths are measured at 4"
    )
    parser.add_argument("--out", type=Path, default=RESULTS / "scale/cpu.json")
    options = parse_options(parser)
    measure(2, 4)
    sizes = [(depth, 4) for depth in options.depths] + [(25, width) for width in options.widths if width != 4]
    cases = []
    for depth, width in sizes:
        cases.append({"depth": depth, "width": width, "seconds": measure(depth, width)})
        print(cases[-1], flush=True)
        write_measurement(options.out, {"cases": cases})


if __name__ == "__main__":
    main()
