"""Trainings after which a comparison of QAT with PTQ would say nothing: of a float network, and one that diverged."""

import math
from collections.abc import Sequence

from qat.report.judgement.differences import Comparison, difference_of, standard_error
from qat.report.judgement.paired import LEVEL
from qat.report.results.metric import MetricInfo
from qat.report.results.schema import Row

CERTAIN = 3.0
"""Standard errors by which QAT must beat float before the float network is called untrained."""


def untrained_float(
    rows: Sequence[Row], qat: Row, n_test: int, metric: MetricInfo, comparison: Comparison | None
) -> str:
    """A sentence if the float network was not trained; else ""."""
    row = next((row for row in rows if row.kind == "float"), None)
    if row is None:
        return ""
    head = "NO VERDICT, the float network was not trained: "
    tail = " Train it first; what QAT learned beyond it says nothing about quantization."
    if math.isnan(row.score):
        return f"{head}its {metric.name} is not a finite number.{tail}"
    if metric.chance is not None and _is_chance(row, n_test, metric):
        chance = metric.text(metric.chance)
        return (
            f"{head}{metric.text(row.score)} {metric.name} on {n_test:,} test samples is not clearly better than the "
            f"{chance} that its outputs reach in random order.{tail}"
        )
    found = difference_of(qat, row, n_test, metric, comparison)
    far = _is_far(row.score, qat.score, metric)
    if far and (found is None or abs(found.difference) > CERTAIN * found.standard_error):
        by = metric.difference(abs(qat.score - row.score))
        values = f"{metric.text(qat.score)} against {metric.text(row.score)} {metric.name}"
        return f"{head}QAT, which continues from it, beats it by {by} ({values}).{tail}"
    return ""


def diverged_training(
    rows: Sequence[Row], qat: Row, n_test: int, metric: MetricInfo, comparison: Comparison | None, reason: str
) -> str:
    """A sentence if the weights exploded, and QAT is worse than before its first step, or at chance; else "".

    reason: a sentence that says which weights exploded; "": none did.
    """
    step0 = next((row for row in rows if row.kind == "step0"), None)
    if not reason or step0 is None:
        return ""
    found = difference_of(qat, step0, n_test, metric, comparison)
    is_worse = metric.better(step0.score, qat.score) and (found is None or found.p_value < LEVEL)
    if not is_worse and not _is_chance(qat, n_test, metric):
        return ""
    values = f"{metric.text(qat.score)} {metric.name}, against {metric.text(step0.score)} before its first step"
    return f"NO VERDICT. {reason} {qat.name} has {values}."


def _is_chance(row: Row, n_test: int, metric: MetricInfo) -> bool:
    """Whether a row is not clearly better than outputs in random order, as far as their value is known."""
    if metric.chance is None:
        return False
    error = standard_error(row, n_test, metric) or 0.0
    return not metric.better(row.score, _worse_by(metric, metric.chance, -CERTAIN * error))


def _worse_by(metric: MetricInfo, value: float, amount: float) -> float:
    return value + amount if metric.mode == "min" else value - amount


def _is_far(float_value: float, qat_value: float, metric: MetricInfo) -> bool:
    """Whether QAT is so much better than float that float was not finished: 5 points, or half of what was wrong."""
    if not metric.better(qat_value, float_value):
        return False
    if metric.percent:
        wrong, left = 1 - float_value, 1 - qat_value
        return qat_value - float_value >= 0.05 or (left < 0.5 * wrong and qat_value - float_value >= 0.01)
    if metric.mode == "min":
        return float_value > 0 and qat_value < 0.5 * float_value
    if qat_value <= 1:  # of a score that ends at 1, such as R2 or IoU
        return 1 - qat_value < 0.5 * (1 - float_value) or (float_value <= 0 and qat_value >= 0.05)
    return qat_value > 2 * max(float_value, 0)
