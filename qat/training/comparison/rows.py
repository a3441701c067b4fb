"""Measured entries as rows of the report."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

from qat.report import Data, Row
from qat.report.judgement.paired import PairedDifference, compare
from qat.report.results.metric import MetricInfo
from qat.training.comparison.entries import Entry
from qat.training.comparison.evaluate import Evaluation
from qat.training.comparison.report_metric import ReportMetric

Measured = Sequence[tuple[Entry, Evaluation]]
"""Entries with their evaluations, in the order of the table."""


def report_rows(
    measured: Measured, info: MetricInfo, extras: Mapping[str, str | None], notes: Mapping[str, str]
) -> list[Row]:
    """The rows of the table.

    Args:
        measured: entries with their evaluations.
        info: the metric.
        extras: field of `Row` -> name under which test_step logs it; None: not logged.
        notes: row name -> note.

    Raises:
        ValueError: test_step does not log a metric.
    """
    rows = []
    for entry, evaluation in measured:
        values = {field: None if name is None else evaluation.metric(name) for field, name in extras.items()}
        value = evaluation.value if math.isfinite(evaluation.value) else None
        rows.append(
            Row(
                name=entry.name,
                kind=entry.kind,
                top1=value if info.percent else None,
                **values,
                size_bytes=entry.size_bytes,
                size_kind=entry.size_kind,
                latency_ms_batch1=entry.latency_ms.get(1),
                latency_ms_batch32=entry.latency_ms.get(32),
                seconds=entry.seconds,
                note=notes.get(entry.name, ""),
                value=value,
                standard_error=evaluation.scores.standard_error() if evaluation.scores is not None else None,
                others=dict(evaluation.others),
            )
        )
    return rows


def metric_info(metric: ReportMetric, measured: Measured) -> MetricInfo:
    """The metric with what only the measurements tell: where errors come from, and the value of chance."""
    info = metric.info
    assert info is not None
    if info.percent and not all(0 <= evaluation.value <= 1 for _, evaluation in measured):
        info = replace(info, percent=False, unit="")  # called accuracy, but not a fraction
    methods = {e.scores.method if e.scores is not None else "" for _, e in measured}
    method = next(iter(methods)) if len(methods) == 1 else "; ".join(sorted(filter(None, methods)))
    of_float = next((evaluation for entry, evaluation in measured if entry.kind == "float"), None)
    chance = of_float.reading.chance() if of_float is not None and of_float.reading is not None else None
    return replace(info, errors=method or ("binomial" if info.percent else ""), chance=chance)


def counted(data: Data, measured: Measured) -> Data:
    """The data with as many test samples as were measured: a loader may leave some out, and a dataset not know its length."""
    count = max((e.reading.count for _, e in measured if e.reading is not None), default=0)
    return replace(data, test=count) if count else data


def of_artefact(measured: Measured) -> tuple[Entry, Evaluation]:
    """The last row, which is nearest to the artefact, before those of its files for further targets."""
    return next(found for found in reversed(measured) if found[0].kind != "qat_target")


def compare_rows(measured: Measured, first: str, second: str) -> PairedDifference | None:
    """Two rows on the same samples; None if their scores do not allow it, or the samples came in another order."""
    found = {entry.name: evaluation for entry, evaluation in measured}
    one, other = found[first], found[second]
    if one.scores is None or other.scores is None or not one.same_samples(other):
        return None
    return compare(one.scores, other.scores)
