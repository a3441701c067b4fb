"""The difference of two rows, with its uncertainty."""

import math
from collections.abc import Callable

from qat.report.judgement.paired import PairedDifference
from qat.report.results.metric import MetricInfo
from qat.report.results.schema import Row

Comparison = Callable[[str, str], PairedDifference | None]
"""From the names of two rows to the difference of the first from the second, on the same samples."""


def binomial_error(fraction: float, n: int) -> float:
    """Standard error of an accuracy measured on `n` samples, as a fraction.

    >>> round(binomial_error(0.9, 10_000), 4)
    0.003
    """
    return math.sqrt(fraction * (1.0 - fraction) / n)


def standard_error(row: Row, n_test: int, metric: MetricInfo) -> float | None:
    """The standard error of a row's value; that of a proportion if the metric is an accuracy and the row has none."""
    if row.standard_error is not None:
        return row.standard_error
    is_proportion = metric.errors == "binomial" and metric.percent and 0 <= row.score <= 1
    return binomial_error(row.score, n_test) if is_proportion else None


def difference_of(
    first: Row, second: Row, n_test: int, metric: MetricInfo, comparison: Comparison | None
) -> PairedDifference | None:
    """The difference of two rows with its uncertainty: paired if possible, else as of independent samples."""
    paired = comparison(first.name, second.name) if comparison is not None else None
    if not math.isfinite(first.score - second.score):
        return None
    if n_test == 1 and metric.errors != "binomial":  # whatever is drawn from one sample is that sample
        return None
    errors = [standard_error(row, n_test, metric) for row in (first, second)]
    if paired is not None or errors[0] is None or errors[1] is None:
        return paired
    difference, error = first.score - second.score, math.hypot(errors[0], errors[1])
    if not math.isfinite(error):
        return None
    middle = difference
    if error == 0 and first.standard_error is second.standard_error is None:  # all right, or all wrong
        middle, error = _with_two_more_samples(first.score, second.score, n_test)
    p_value = math.erfc(abs(middle) / error / math.sqrt(2)) if error else float(difference == 0)
    low, high = middle - 1.96 * error, middle + 1.96 * error
    if metric.percent:
        low, high = max(low, -1.0), min(high, 1.0)
    return PairedDifference(difference, error, low, high, p_value, "as if of independent samples")


def _with_two_more_samples(first: float, second: float, n_test: int) -> tuple[float, float]:
    """The difference of two proportions and its standard error, as far as so many samples tell, also where both are 0 or 1.

    With one more success and one more failure in each (Agresti and Caffo 2000): one right against one wrong proves nothing.
    """
    adjusted = [(n_test * fraction + 1) / (n_test + 2) for fraction in (first, second)]
    error = math.hypot(*(binomial_error(fraction, n_test + 2) for fraction in adjusted))
    return adjusted[0] - adjusted[1], error
