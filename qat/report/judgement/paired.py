"""Two models on the same samples: how much of their difference could be chance."""

import math
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

LEVEL = 0.05
"""A difference counts if its p-value is below; intervals are of 1 - LEVEL."""
REPLICATES = 1000
FEW = 30
"""Below so many units, a t-test replaces the bootstrap, which would be too sure."""


@dataclass(frozen=True)
class SampleScores:
    """What is known of a metric beyond its value, for one model. The units are the same in every model.

    Args:
        correct: of a plain accuracy: which samples are right, bool (n,).
        values: of a mean: its value in each unit, float (units,). Of any other metric with `FEW` samples: their `jackknife`.
        weights: how many samples each unit has, float (units,).
        replicates: of any other metric: its value in each resample that `resamples` draws, float (B,).
        units: what they are.
    """

    correct: NDArray[np.bool_] | None = None
    values: NDArray[np.float64] | None = None
    weights: NDArray[np.float64] = field(default_factory=lambda: np.ones(0))
    replicates: NDArray[np.float64] | None = None
    units: str = "samples"

    @property
    def method(self) -> str:
        """Where its standard error comes from."""
        if self.correct is not None:
            return "binomial"
        if self.replicates is not None or (self.values is not None and len(self.values) >= FEW):
            return "bootstrap"
        if self.values is None or len(self.values) < 2:
            return ""
        return "of the mean of batches" if self.units == "batches" else "jackknife"

    def standard_error(self) -> float | None:
        """The standard error of the value; None if nothing tells."""
        if self.correct is not None:
            return math.sqrt(self.correct.mean() * (1 - self.correct.mean()) / len(self.correct))
        if self.method == "bootstrap":
            error = float(np.std(self.resampled(), ddof=1))
        elif self.values is not None and len(self.values) > 1:
            error = _weighted_mean_error(self.values, self.weights)[1]
        else:
            return None
        return error if math.isfinite(error) else None

    def resampled(self) -> NDArray[np.float64]:
        """The value in each resample, float (B,)."""
        if self.replicates is not None:
            return self.replicates
        assert self.values is not None
        drawn = resamples(len(self.values)) * self.weights
        return np.asarray(drawn @ self.values / drawn.sum(axis=1))


@dataclass(frozen=True)
class PairedDifference:
    """The first value minus the second, with its 95 % interval and the p-value of "there is no difference"."""

    difference: float
    standard_error: float
    low: float
    high: float
    p_value: float
    method: str


def resamples(units: int, replicates: int = REPLICATES) -> NDArray[np.float64]:
    """How often each unit is drawn in each resample, (replicates, units): the same in every call, so models are paired."""
    rng = np.random.default_rng(0)
    return rng.multinomial(units, np.full(units, 1 / units), size=replicates).astype(np.float64)


def compare(first: SampleScores, second: SampleScores) -> PairedDifference | None:
    """Compare two models that were measured on the same units; None if their scores do not allow it."""
    if first.correct is not None and second.correct is not None and len(first.correct) == len(second.correct):
        return mcnemar(first.correct, second.correct)
    if first.method == second.method == "bootstrap":
        a, b = first.resampled(), second.resampled()
        shared = min(len(a), len(b))  # the first resamples are the same; a slow metric has fewer
        return bootstrap(a[:shared], b[:shared])
    if first.values is not None and second.values is not None and len(first.values) == len(second.values) > 1:
        return paired_t(first.values - second.values, first.weights, first.units)
    return None


def mcnemar(first: NDArray[np.bool_], second: NDArray[np.bool_]) -> PairedDifference:
    """The exact McNemar test (1947) of two classifiers, with the interval that belongs to it.

    Only samples that one of them has right and the other wrong tell them apart. If there is no difference, each of these is
    a fair coin, so the p-value is that of a binomial test. The interval is Clopper and Pearson's (1934) for the coin, times
    the share of such samples, which says the same as the p-value; united with the adjusted Wald interval of Agresti and Min
    (2005), because that share is uncertain, too.

    Args:
        first: which samples the first has right, bool (n,).
        second: the same of the second.

    >>> result = mcnemar(np.array([True] * 9 + [False]), np.array([True] * 3 + [False] * 7))
    >>> result.difference, result.p_value
    (0.6, 0.03125)
    """
    from scipy.stats import binomtest  # late: the slowest import of the report

    n = len(first)
    only_first, only_second = int((first & ~second).sum()), int((second & ~first).sum())
    told = only_first + only_second
    difference = (only_first - only_second) / n
    p_value, share = 1.0, (0.5, 0.5)
    if told:
        test = binomtest(only_first, told)
        interval = test.proportion_ci(1 - LEVEL, "exact")
        p_value, share = float(test.pvalue), (interval.low, interval.high)
    middle, spread = (
        (only_first - only_second) / (n + 2),
        math.sqrt(told + 1 - (only_first - only_second) ** 2 / (n + 2)),
    )
    reach = 1.96 * spread / (n + 2)
    low = min((2 * share[0] - 1) * told / n, middle - reach)
    high = max((2 * share[1] - 1) * told / n, middle + reach)
    error = math.sqrt(told - (only_first - only_second) ** 2 / n) / n
    return PairedDifference(difference, error, low, high, p_value, "exact McNemar test")


def bootstrap(first: NDArray[np.float64], second: NDArray[np.float64]) -> PairedDifference | None:
    """The paired bootstrap: percentiles of the difference over resamples that both models share.

    Args:
        first: values of the first model in each resample, (B,).
        second: those of the second in the same resamples.

    Source: Efron and Tibshirani, An Introduction to the Bootstrap (1993), chapters 13 and 16.
    """
    differences = first - second
    if not np.isfinite(differences).all():
        return None
    low, high = np.quantile(differences, (LEVEL / 2, 1 - LEVEL / 2))
    tails = [(1 + int((sign * differences <= 0).sum())) / (1 + len(differences)) for sign in (1, -1)]
    p_value = min(1.0, 2 * min(tails))
    error = float(np.std(differences, ddof=1))
    return PairedDifference(float(differences.mean()), error, float(low), float(high), p_value, "paired bootstrap")


def jackknife(value: float, without: NDArray[np.float64]) -> NDArray[np.float64]:
    """A pseudo-value for each of a few samples, whose mean is the value without bias; of a mean, what it is the mean of.

    Two or three samples give a bootstrap so few different resamples that it takes any difference for certain.

    Args:
        value: of a metric, over all samples.
        without: its value without each of them, float (samples,).

    Source: Tukey (1958), Bias and confidence in not quite large samples.

    >>> jackknife(2.0, np.array([2.5, 2.0, 1.5]))
    array([1., 2., 3.])
    """
    return len(without) * value - (len(without) - 1) * without


def paired_t(
    differences: NDArray[np.float64], weights: NDArray[np.float64], units: str = "batches"
) -> PairedDifference | None:
    """The paired t-test of a few units, such as batches, with weights."""
    from scipy.stats import t as student

    if not np.isfinite(differences).all():
        return None
    mean, error = _weighted_mean_error(differences, weights)
    freedom = len(differences) - 1
    reach = float(student.ppf(1 - LEVEL / 2, freedom)) * error
    p_value = 2 * float(student.sf(abs(mean) / error, freedom)) if error else float(mean == 0)
    method = f"paired t-test of {len(differences)} {units}"
    return PairedDifference(mean, error, mean - reach, mean + reach, p_value, method)


def _weighted_mean_error(values: NDArray[np.float64], weights: NDArray[np.float64]) -> tuple[float, float]:
    """The weighted mean and its standard error, that of a ratio of two sums (Cochran 1977, eq. 2.46)."""
    n, mean = len(values), float(np.average(values, weights=weights))
    residuals = weights / weights.mean() * (values - mean)
    return mean, math.sqrt(float(residuals @ residuals) / (n * (n - 1)))
