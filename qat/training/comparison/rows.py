"""Measured entries as rows of the report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from qat.report import Row
from qat.training.comparison.entries import Entry
from qat.training.comparison.evaluate import Evaluation


def report_rows(
    measured: Sequence[tuple[Entry, Evaluation]], metrics: Mapping[str, str | None], notes: Mapping[str, str]
) -> list[Row]:
    """The rows of the table.

    Args:
        measured: entries with their evaluations, in the order of the table.
        metrics: field of `Row` -> name under which test_step logs it; None: not logged.
        notes: row name -> note.

    Raises:
        ValueError: test_step does not log a metric.
    """
    rows = []
    for entry, evaluation in measured:
        values = {field: None if name is None else evaluation.metric(name) for field, name in metrics.items()}
        top1 = values.pop("top1")
        assert top1 is not None
        rows.append(
            Row(
                name=entry.name,
                kind=entry.kind,
                top1=top1,
                **values,
                size_bytes=entry.size_bytes,
                size_kind=entry.size_kind,
                latency_ms_batch1=entry.latency_ms.get(1),
                latency_ms_batch32=entry.latency_ms.get(32),
                seconds=entry.seconds,
                note=notes.get(entry.name, ""),
            )
        )
    return rows
