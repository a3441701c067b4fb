"""The report of `qat quantize`: the file beside the float model."""

from __future__ import annotations

import argparse
import shlex
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from qat.cli import measure
from qat.cli.arguments import say
from qat.cli.artefact import Written, one_sample
from qat.cli.methods import DEFAULT_POLICIES
from qat.cli.metric import Metric, metric_named
from qat.cli.sources.data import Data, first_tensor
from qat.cli.sources.model import Model
from qat.cli.targets import target_of
from qat.doctor import find_quickly
from qat.export import export_float_onnx
from qat.export.targets import Target
from qat.report import Data as DataRecord
from qat.report import (
    Environment,
    Results,
    Row,
    SiteInfo,
    Verdict,
    read_results,
    write_results,
)
from qat.report.pages.markdown import write_report
from qat.report.results.json_records import SchemaError
from qat.report.results.metric import MetricInfo
from qat.training.comparison.verification_record import verification_record
from qat.transform.inspect import table

FLOAT = "float"
WATCHED, SAID = 64, 5
"""Samples that the doctor sees, and findings that are said before the report."""
CLOSE = 0.9
"""A file that decides as the float model does for fewer samples is looked at layer by layer."""
ONNX_RUNTIME = "ONNX Runtime's quantize_static"
"""What made a file that our own methods did not."""


@dataclass
class Compared:
    """Models on the same samples. output: of a batch of the first."""

    found: list[measure.Measurement]
    metric: Metric | None
    output: Tensor


def report(
    options: argparse.Namespace,
    target: Target,
    model: Model,
    data: Data,
    prepared: nn.Module,
    written: Written,
    command: str,
    seconds: dict[str, float],
) -> tuple[Results, Path]:
    """Measure the file and the float model on the same samples, and write results.json, report.html and report.md.

    Returns:
        The results, and the folder that they are in.
    """
    file = Model(options.output.name, target.network(written.path, options.threads), written.path, target)
    contestants = [file] if model.is_prepared else [Model(FLOAT, model.network, example=model.example), file]
    compared = compare(contestants, data, options.seconds, options.threads)
    summary = table(prepared)  # what it would warn of is among the findings
    results = results_of(
        options,
        command,
        data,
        compared,
        _verdict(written, compared.found, data),
        verification=verification_record(written.path, written.verification),
        sites=[SiteInfo(s.name, s.operation, s.weight or None, s.activation or None) for s in summary.lines],
        float_edges=[*summary.float_edges, *summary.notes],
        findings=[*_far_from_float(options, compared, data), *_findings(prepared, written, data)],
        timings=seconds,
    )
    return results, write(results, options.output)


def _findings(prepared: nn.Module, written: Written, data: Data) -> list[str]:
    """What the doctor sees at a glance; the worst are said at once."""
    found = [str(finding) for finding in find_quickly(prepared, data.train.inputs(WATCHED), written.integer)]
    for finding in found[:SAID]:
        say(f"to mend: {finding}")
    return found


def _far_from_float(options: argparse.Namespace, compared: Compared, data: Data) -> list[str]:
    """What to do about a file that decides otherwise than the float model. Noise tells nothing of it."""
    agreement = compared.found[-1].agreement
    if data.noise or agreement is None or agreement >= CLOSE:
        return []
    words = ["qat", "inspect", options.model, "--policy", options.policy or DEFAULT_POLICIES[options.method]]
    for name in ("weights", "architecture", "data"):
        words += [f"--{name}", getattr(options, name)] if getattr(options, name) is not None else []
    finding = f"it decides otherwise than the float model for {1 - agreement:.0%} of the samples -> {shlex.join(words)}"
    say(f"to mend: {finding}")
    return [finding]


def compare(contestants: list[Model], data: Data, seconds: float, threads: int | None) -> Compared:
    """Measure models, the float one first. seconds: for the latency of each batch size."""
    output, metric = metric_of(contestants[0], data)
    if metric is None and data.labelled:
        data.notes.append(
            f"the model has {output.shape[1]} outputs, the data {data.classes} classes: agreement with the float model is "
            "measured, not accuracy"
        )
    say(f"measuring, and timing for about {len(measure.BATCH_SIZES) * seconds:.0f} s ...")
    found = measure.measure(contestants, data, metric)
    _time(contestants, found, data, seconds, threads)
    return Compared(found, metric, output)


def results_of(
    options: argparse.Namespace,
    command: str,
    data: Data,
    compared: Compared,
    verdict: Verdict,
    made_by: str = "",
    **more: Any,
) -> Results:
    """The record of a run. made_by: if not by the method of ours; more: further fields of `Results`."""
    return Results(
        recipe=f"{options.model}, {options.method}",
        command=command,
        seed=options.seed,
        config={key: _plain(value) for key, value in vars(options).items()},
        data=_data_record(data, compared.output),
        rows=[_row(measurement, compared.metric, made_by or options.method) for measurement in compared.found],
        verdict=verdict,
        metric=_metric_info(compared.metric),
        environment=Environment.collect(threads=torch.get_num_threads()),
        **more,
    )


def write(results: Results, output: Path) -> Path:
    """Write results and reports beside the file `output`, or into a folder of its own. Returns the folder."""
    folder = _folder(output)
    write_report(results, folder)
    write_results(results, folder / "results.json")
    return folder


def metric_of(model: Model, data: Data) -> tuple[Tensor, Metric | None]:
    """The output of a batch, and the metric, if labels mean the outputs: those of ten classes say nothing about a thousand.

    Raises:
        UsageError: the labels do not fit the outputs.
    """
    output = measure.run(model.network, next(iter(data.test)).inputs)
    knows_classes = data.classes is None or output.ndim != 2 or output.shape[1] == data.classes
    return output, metric_named(None, data, output) if knows_classes else None


def _time(
    contestants: list[Model], found: list[measure.Measurement], data: Data, seconds: float, threads: int | None
) -> None:
    """Latency of the files, in turns; the float model is written to a file for it where torch.onnx can."""
    example = one_sample(data.test)
    with _float_file(contestants, example) as float_path:
        networks = {m.name: m.network for m in contestants}
        if float_path is not None:
            networks[FLOAT] = target_of(float_path).network(float_path, threads)
            found[0].size_bytes, found[0].size_kind = measure.file_size(float_path), "file"
        elif len(contestants) > 1 and contestants[0].path is None:
            found[0].notes.append("timed in torch: torch.onnx does not write it")
        timings = measure.time_models(networks, example, seconds, threads)
    for measurement in found:
        measurement.latency = timings[measurement.name]


@contextmanager
def _float_file(contestants: list[Model], example: Any) -> Iterator[Path | None]:
    """The float model as an ONNX file; None if there is none, or it cannot be written."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "float.onnx"
        if len(contestants) > 1 and contestants[0].path is None and not isinstance(example, dict):
            try:
                export_float_onnx(contestants[0].network, example, path)
            except Exception:  # of torch.onnx, whose errors are of any kind: the float model is only compared with
                path.unlink(missing_ok=True)
        yield path if path.is_file() else None


def _row(found: measure.Measurement, metric: Metric | None, method: str) -> Row:
    info = _metric_info(metric)
    value = found.agreement if metric is None else found.value
    kind: Any = (
        FLOAT
        if found.name == FLOAT
        else "outside"
        if method == ONNX_RUNTIME
        else "qat_onnxruntime"
        if method == "quantization_aware"
        else "ptq"
    )
    return Row(
        name=found.name if found.name == FLOAT else f"{found.name}, {method}",
        kind=kind,
        top1=value if metric is not None and info.percent else None,
        value=value,
        size_bytes=found.size_bytes,
        size_kind="file" if found.size_kind == "file" else "stored",
        latency_ms_batch1=found.latency[1].median if 1 in found.latency else None,
        latency_ms_batch32=found.latency[32].median if 32 in found.latency else None,
        note="; ".join(found.notes),
    )


def _metric_info(metric: Metric | None) -> MetricInfo:
    """What the rows are measured by: without labels it is the agreement with the first model."""
    if metric is None:
        return MetricInfo("agreement with the first model", errors="")
    if metric.percent:
        return MetricInfo()
    return MetricInfo(metric.name, "", "min" if metric.mode == "min" else "max", percent=False, errors="")


def _verdict(written: Written, found: list[measure.Measurement], data: Data) -> Verdict:
    """What was shown, and what was not."""
    verification = written.verification
    if not verification.passed:
        return Verdict("not_verified", verification.failure(written.path.name))
    text = (
        f"VERIFIED: {written.path.name} computes what was quantized, {verification.code_mismatches:,} of "
        f"{verification.codes_compared:,} codes differ."
    )
    if len(found) > 1:
        text += f" It decides as the float model does for {100 * (found[1].agreement or 0):.1f} % of the samples{costs(found)}."
    return Verdict("verified", f"{text} {data.notes[0]}." if data.noise and data.notes else text)


def costs(found: list[measure.Measurement]) -> str:
    """Size and time of the file, of float; nothing if there is no file of the float model, which is timed in torch then."""
    first, file = found
    if first.size_kind != "file":
        return ""
    texts = [f"{file.size_bytes / first.size_bytes:.2f}× its size"]
    for size in measure.BATCH_SIZES:
        if size in first.latency and size in file.latency:
            texts.append(f"{file.latency[size].median / first.latency[size].median:.2f}× its time at batch {size}")
    return f", at {', '.join(texts)}"


def _data_record(data: Data, output: Tensor) -> DataRecord:
    return DataRecord(
        name=data.name,
        label="noise" if data.noise else data.name,
        train=data.train.samples,
        val=0,
        test=data.test.samples,
        image_shape=tuple(first_tensor(next(iter(data.test)).inputs).shape[1:]),
        classes=data.classes or (output.shape[-1] if output.ndim > 1 else 1),
        note=" ".join(f"{note.rstrip('.')}." for note in data.notes),
    )


def _folder(output: Path) -> Path:
    """Where the report goes: beside the file, or into a folder of its own if the results of another file lie there."""
    beside = output.parent / "results.json"
    if not beside.is_file():
        return output.parent
    try:
        before = read_results(beside).config.get("output")
    except (SchemaError, OSError):
        before = None
    return output.parent if before == str(output) else output.with_name(f"{output.stem}_report")


def _plain(value: Any) -> Any:
    return str(value) if isinstance(value, Path) else list(value) if isinstance(value, tuple) else value
