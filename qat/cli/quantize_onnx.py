"""`qat quantize` of an ONNX file: by ONNX Runtime's own tools, checked as far as that goes without an integer model."""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qat.cli import arguments
from qat.cli.errors import FAILED, GOOD, UsageError
from qat.export.targets import Target

if TYPE_CHECKING:
    from qat.cli.quantize_report import Compared
    from qat.cli.sources.data import Data
    from qat.cli.sources.model import Model

LEAST_DB = 10.0
"""A quantized file whose outputs are further from the float file's does not get its name."""
NOT_PROVEN = "ONNX Runtime quantized it, so there is no integer model, and codes were not compared one by one"


def quantize_file(options: argparse.Namespace, target: Target, source: Model, data: Data, command: str) -> int:
    """Quantize an ONNX file with ONNX Runtime, run both files on the data, and report. Returns the exit status."""
    from qat.cli.quantize_report import FLOAT, ONNX_RUNTIME, compare, results_of, write
    from qat.cli.sources.model import Model
    from qat.export.onnx.quantize_static import quantize_file_statically
    from qat.export.unverified import named_when_verified
    from qat.report import Verdict

    start = time.perf_counter()
    assert source.path is not None
    inputs = [
        tuple(x.values()) if isinstance(x, dict) else x if isinstance(x, tuple) else (x,) for x in data.train.inputs()
    ]
    arguments.say("quantizing with ONNX Runtime ...")
    with named_when_verified(options.output) as unverified:
        quantize_file_statically(source.path, inputs, unverified.path)
        seconds = {"quantization": time.perf_counter() - start}
        network = target.network(unverified.path, options.threads)
        file = Model(options.output.name, network, unverified.path, target)
        original = Model(FLOAT, source.network, source.path, source.target, source.example)
        compared = compare([original, file], data, options.seconds, options.threads)
        passed = unverified.passed = _passes(compared)
    path = unverified.path
    verdict = Verdict("undecided" if passed else "not_verified", _text(path, passed, compared, data))
    results = results_of(options, command, data, compared, verdict, made_by=ONNX_RUNTIME, timings=seconds)
    folder = write(results, options.output)
    _print(options, results, folder, path, passed)
    return GOOD if passed else FAILED


def check(options: argparse.Namespace, target: Target) -> None:
    """What ONNX Runtime's tools cannot do.

    Raises:
        UsageError: the method, the policy or the target is not theirs.
    """
    if options.method != "post_training":
        raise UsageError(
            f"an ONNX file has no network to train or rewrite: write --method post_training, not {options.method}."
        )
    if options.policy not in (None, "w8a8"):
        raise UsageError(
            f"ONNX Runtime's tools quantize a file to w8a8 alone: leave out --policy {options.policy}, or give the network."
        )
    if target.name != "onnxruntime":
        raise UsageError(
            f"ONNX Runtime's tools write files for it alone: leave out --target {target.name}, or give the network."
        )


def _passes(compared: Compared) -> bool:
    decibels = compared.found[1].sqnr_db
    return decibels is None or decibels >= LEAST_DB


def _text(path: Path, passed: bool, compared: Compared, data: Data) -> str:
    from qat.cli.quantize_report import costs

    file = compared.found[1]
    distance = "are equal to" if file.sqnr_db is None else f"have {file.sqnr_db:.1f} dB signal to noise against"
    found = (
        f"{path.name} runs in ONNX Runtime and decides as the float file does for {100 * (file.agreement or 0):.1f} % of the "
        f"samples; its outputs {distance} the float file's{costs(compared.found)}. {NOT_PROVEN}."
    )
    noise = f" {data.notes[0]}." if data.noise and data.notes else ""
    return f"{'CHECKED' if passed else 'NOT VERIFIED, do not deploy'}: {found}{noise}"


def _print(options: argparse.Namespace, results: Any, folder: Path, path: Path, passed: bool) -> None:
    from qat.report import print_report

    if options.json:
        content = {"file": str(path), "verified": passed, "how": NOT_PROVEN, "report": str(folder / "report.html")}
        arguments.print_json({**content, "results": results.to_dict()})
        return
    print_report(results)
    print(f"report: {folder / 'report.html'}, {folder / 'results.json'}")
    print(f"{'CHECKED' if passed else 'NOT VERIFIED, do not deploy'}: {path}")
