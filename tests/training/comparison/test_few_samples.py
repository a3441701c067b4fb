"""Metrics of few samples, of samples of one class, and of parts of the samples that have no value."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor
from torchmetrics import MeanAbsoluteError

from qat.report.judgement.paired import compare
from qat.report.results.metric import MetricInfo
from qat.training.comparison.chance import value_by_chance
from qat.training.comparison.report_metric import ReportMetric
from qat.training.comparison.sample_scores import batch_scores, function_scores, known_losses, metric_scores

ERROR = MetricInfo("error", "", "min", percent=False)


def error(outputs: Tensor, targets: Tensor) -> float:
    return float((outputs - targets).abs().mean())


@pytest.mark.parametrize("n", [2, 3, 12])
def test_few_samples_are_compared_by_a_t_test(n: int) -> None:
    targets, noise = torch.zeros(n), torch.randn(2, n, generator=torch.Generator().manual_seed(n)).abs() + 0.1
    expected = stats.ttest_rel(noise[0], noise[1])
    for of in (
        lambda x: function_scores(error, x, targets, error(x, targets)),
        lambda x: metric_scores(MeanAbsoluteError(), [(x, targets)], error(x, targets)),
    ):
        found = compare(of(noise[0]), of(noise[1]))  # type: ignore[no-untyped-call]
        assert found is not None
        assert found.p_value == pytest.approx(expected.pvalue, rel=1e-3)
        assert found.method == f"paired t-test of {n} samples"


def test_a_function_that_refuses_some_samples_has_no_scores() -> None:
    def refuses(outputs: Tensor, targets: Tensor) -> float:
        if len(targets.unique()) < len(targets):
            raise ValueError("a sample twice")
        return error(outputs, targets)

    outputs, targets = torch.randn(40), torch.arange(40.0)
    assert function_scores(refuses, outputs, targets, error(outputs, targets)) is None


def test_small_numbers_are_no_loss_only_because_they_are_small() -> None:
    outputs, targets = torch.tensor([1e-7, 2e-7, 3e-7]), torch.zeros(3)
    assert known_losses([outputs], [targets], 7e-7) is None
    assert known_losses([outputs], [targets], 2e-7) == pytest.approx(outputs.numpy())
    assert batch_scores([(1e-7, 1), (3e-7, 1)], 5e-7) is None
    assert batch_scores([(1.0, 1), (-1.0, 1)], 1e-9) is not None  # rounding of what cancels


def test_chance_is_not_the_order_that_it_has() -> None:
    metric = ReportMetric(error, "min", info=ERROR)
    assert value_by_chance(metric, None, [(torch.tensor([1.0, 2.0]), torch.tensor([1.0, 2.0]))]) == 1.0
    for targets in (torch.tensor([2.0]), torch.full((9,), 2.0)):  # their order tells nothing
        assert value_by_chance(metric, None, [(targets + 1, targets)]) is None
    accuracy = ReportMetric("test/acc", info=MetricInfo())
    assert value_by_chance(accuracy, None, [(torch.tensor([3, 3, 1]), torch.tensor([3, 3, 3]))]) is None
    decided = torch.from_numpy(np.arange(4))
    assert value_by_chance(accuracy, None, [(decided, decided)]) == 0.25
