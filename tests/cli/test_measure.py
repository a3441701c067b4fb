"""Metrics of the command line."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from qat.cli.errors import UsageError
from qat.cli.measure import measure
from qat.cli.metric import metric_named
from qat.cli.sources.data import Batch, Batches, Data
from qat.cli.sources.model import Model


def data(*labels: Tensor) -> Data:
    batches = Batches(lambda: iter([Batch(torch.zeros(len(part), 2), part) for part in labels]))
    return Data("mine", batches, batches)


def test_one_output_decides_between_two_classes() -> None:
    labels, outputs = torch.tensor([0, 1, 1, 0]), torch.tensor([[-1.0], [2.0], [-3.0], [-4.0]])
    metric = metric_named(None, data(labels), outputs)
    assert metric is not None
    assert (metric.name, metric.score(outputs, labels)) == ("accuracy", 0.75)


def test_an_output_of_one_axis_decides_between_two_classes() -> None:
    labels, outputs = torch.tensor([0, 1, 1, 0]), torch.tensor([-1.0, 2.0, -3.0, -4.0])
    metric = metric_named("accuracy", data(labels), outputs)
    assert metric is not None
    assert metric.score(outputs, labels) == 0.75
    with pytest.raises(UsageError, match="a label of --data mine is 2, and the model has 1 output: "):
        metric_named("accuracy", data(torch.tensor([0, 1, 2, 0])), outputs)


@pytest.mark.parametrize(
    ("first", "second", "decibels"), [(0.0, 0.0, None), (0.0, 1.0, -999), (1.0, torch.nan, -999), (1.0, 0.9, 20)]
)
def test_only_equal_outputs_are_called_equal(first: float, second: float, decibels: float | None) -> None:
    """Against an output of zeros, or with NaN in it, there is no ratio of signal to noise, but a difference."""

    class Constant(nn.Module):
        def __init__(self, value: float) -> None:
            super().__init__()
            self.value = value

        def forward(self, x: Tensor) -> Tensor:
            return torch.full((len(x), 2), self.value)

    found = measure([Model("a", Constant(first)), Model("b", Constant(second))], data(torch.tensor([0, 1])), None)
    assert found[1].sqnr_db == (None if decibels is None else pytest.approx(decibels))


def test_labels_that_do_not_count_are_left_out() -> None:
    labels, outputs = torch.tensor([[0, -100], [1, -100]]), torch.eye(2)[:, None].expand(2, 2, 2)
    metric = metric_named("accuracy", data(labels), outputs)
    assert metric is not None
    assert metric.score(outputs, labels) == 1.0


@pytest.mark.parametrize("wrong", [9, -1])
def test_a_label_behind_the_first_batch_is_looked_at(wrong: int) -> None:
    """Else it counts as an answer that is wrong."""
    later = torch.tensor([1, wrong])
    with pytest.raises(UsageError, match=f"a label of --data mine is {wrong}, and the model has 3 outputs"):
        metric_named(None, data(torch.tensor([0, 1]), torch.tensor([2, 2]), later), torch.zeros(2, 3))


def test_a_mean_is_over_the_labels_that_count() -> None:
    """One of one, none of three, and a batch in which nothing counts."""
    labels = [torch.tensor(part) for part in ([0, -100, -100], [1, 1, 1], [-100, -100, -100])]

    class AlwaysFirst(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.eye(2)[0].expand(len(x), 2)

    given = data(*labels)
    [found] = measure([Model("mine", AlwaysFirst())], given, metric_named("accuracy", given, torch.zeros(3, 2)))
    assert found.value == 0.25
