"""Differences of two models on the same samples, against enumeration, scipy and simulated truth."""

import itertools

import numpy as np
import pytest
from scipy import stats

from qat.report.judgement.paired import SampleScores, bootstrap, compare, mcnemar, paired_t, resamples


def test_mcnemar_is_the_enumeration_of_all_coin_tosses() -> None:
    first = np.array([1, 1, 1, 1, 1, 0, 1, 1, 0, 0], bool)
    second = np.array([1, 0, 0, 0, 0, 1, 1, 0, 0, 0], bool)
    found = mcnemar(first, second)  # 5 samples tell for the first, 1 for the second
    tosses = [sum(toss) for toss in itertools.product((0, 1), repeat=6)]
    assert found.p_value == pytest.approx(sum(abs(heads - 3) >= 2 for heads in tosses) / len(tosses))
    assert found.difference == pytest.approx(first.mean() - second.mean())
    paired = first.astype(float) - second
    assert found.standard_error == pytest.approx(paired.std() / np.sqrt(10))


def test_interval_and_p_value_of_mcnemar_say_the_same() -> None:
    for only_first, only_second in itertools.product(range(0, 40, 3), repeat=2):
        first, second = np.zeros(500, bool), np.zeros(500, bool)
        first[:only_first], second[100 : 100 + only_second] = True, True
        found = mcnemar(first, second)
        assert (found.p_value < 0.05) == (found.low > 0 or found.high < 0)
        assert found.low <= found.difference <= found.high


@pytest.mark.slow
def test_the_interval_of_mcnemar_holds_the_truth_in_95_of_100_cases() -> None:
    rng = np.random.default_rng(3)
    tables = rng.multinomial(500, [0.02, 0.01, 0.9, 0.07], size=300)
    hits = 0
    for only_first, only_second, both, _ in tables:
        first, second = (np.arange(500) < both for _ in range(2))
        first[both : both + only_first] = True
        second[both + only_first : both + only_first + only_second] = True
        found = mcnemar(first, second)
        hits += found.low <= 0.01 <= found.high
    assert hits >= 0.93 * 300


def test_pairs_see_what_independent_samples_hide() -> None:
    base = np.arange(1000) < 900
    better = base.copy()
    better[900:912] = True
    found = mcnemar(better, base)
    assert found.p_value < 0.001  # 1.2 points, less than one standard error of two independent accuracies


def test_the_bootstrap_of_means_has_the_error_of_the_textbook() -> None:
    rng = np.random.default_rng(1)
    errors = rng.exponential(2.0, 400)
    scores = SampleScores(values=errors, weights=np.ones(400))
    other = SampleScores(values=errors + rng.normal(0.05, 0.1, 400), weights=np.ones(400))
    assert scores.standard_error() == pytest.approx(stats.sem(errors), rel=0.1)
    found = compare(other, scores)
    assert found is not None
    difference = other.values - scores.values  # type: ignore[operator]
    assert found.difference == pytest.approx(difference.mean(), rel=0.1)
    assert found.standard_error == pytest.approx(stats.sem(difference), rel=0.1)
    assert found.p_value < 0.01
    assert found.low > 0


def test_few_batches_are_a_t_test() -> None:
    differences = np.array([0.9, 1.1, 1.3, 0.7])
    found = paired_t(differences, np.ones(4))
    expected = stats.ttest_1samp(differences, 0.0)
    assert found is not None
    assert found.p_value == pytest.approx(expected.pvalue)
    assert (found.low, found.high) == pytest.approx(tuple(expected.confidence_interval(0.95)))


def test_no_difference_is_found_where_there_is_none_in_95_of_100_cases() -> None:
    rng = np.random.default_rng(2)
    drawn = resamples(60)[:300]
    hits = 0
    for _ in range(200):
        found = bootstrap(drawn @ rng.normal(size=60) / 60, np.zeros(300))
        assert found is not None
        hits += found.p_value < 0.05
    assert hits <= 25


def test_what_cannot_be_paired_is_not_compared() -> None:
    assert compare(SampleScores(correct=np.ones(3, bool)), SampleScores(correct=np.ones(4, bool))) is None
    assert compare(SampleScores(), SampleScores()) is None
    assert bootstrap(np.array([np.nan, 1.0]), np.zeros(2)) is None
