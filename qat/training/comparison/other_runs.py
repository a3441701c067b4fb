"""The network of this fit against the files of other fits, on the same samples."""

from __future__ import annotations

from qat.report.judgement.paired import LEVEL
from qat.report.results.allocation import OtherRun
from qat.report.results.metric import MetricInfo
from qat.report.text.allocation_tables import CERTAIN
from qat.training.comparison.rows import Measured, compare_rows, of_artefact


def compare_with_others(measured: Measured, info: MetricInfo) -> list[OtherRun]:
    """The row of the artefact against each row of another run."""
    last, _ = of_artefact(measured)
    found = []
    for entry, _ in measured:
        if entry.kind == "other_run":
            difference = compare_rows(measured, last.name, entry.name)
            if difference is None:
                found.append(OtherRun(last.name, entry.name, None, None, None, last.size_bytes, entry.size_bytes))
                continue
            amount, error, p_value = difference.difference, difference.standard_error, difference.p_value
            wins = info.better(amount, 0.0) and abs(amount) >= CERTAIN * error and p_value < LEVEL
            found.append(
                OtherRun(last.name, entry.name, amount, error, wins, last.size_bytes, entry.size_bytes, p_value)
            )
    return found
