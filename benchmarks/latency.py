"""Latency of recorded int8 files over their float files in ONNX Runtime, in turns; a few seconds per file.

python -m benchmarks.latency outputs/cifar10_*     # folders that hold model.onnx and float.onnx
"""

from __future__ import annotations

import argparse
from pathlib import Path

import onnx
import torch

from benchmarks.measurement_file import RESULTS, write_measurement
from qat.export import latency


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", type=Path, nargs="+")
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--out", type=Path, default=RESULTS / "latency/cpu.json")
    options = parser.parse_args()
    runs = {}
    for folder in options.folders:
        shape = [d.dim_value for d in onnx.load(folder / "model.onnx").graph.input[0].type.tensor_type.shape.dim[1:]]
        files = {"float": folder / "float.onnx", "int8": folder / "model.onnx"}
        milliseconds = latency(files, torch.randn(1, *shape), rounds=options.rounds)
        ratio = {size: milliseconds["int8"][size] / milliseconds["float"][size] for size in milliseconds["int8"]}
        runs[folder.name] = {"milliseconds": milliseconds, "ratio": ratio}
        print(f"{folder.name:16}", "   ".join(f"batch {size}: {value:.2f} x" for size, value in ratio.items()))
    write_measurement(options.out, {"latency": runs})


if __name__ == "__main__":
    main()
