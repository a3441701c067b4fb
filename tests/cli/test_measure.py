"""Metrics of the command line."""

from __future__ import annotations

import torch
from torch import Tensor

from qat.cli.metric import metric_named
from qat.cli.sources.data import Batch, Batches, Data


def data(labels: Tensor) -> Data:
    batches = Batches(lambda: iter([Batch(torch.zeros(len(labels), 2), labels)]))
    return Data("mine", batches, batches)


def test_one_output_decides_between_two_classes() -> None:
    labels, outputs = torch.tensor([0, 1, 1, 0]), torch.tensor([[-1.0], [2.0], [-3.0], [-4.0]])
    metric = metric_named(None, data(labels), outputs)
    assert metric is not None
    assert (metric.name, metric.score(outputs, labels)) == ("accuracy", 0.75)


def test_labels_that_do_not_count_are_left_out() -> None:
    labels, outputs = torch.tensor([[0, -100], [1, -100]]), torch.eye(2)[:, None].expand(2, 2, 2)
    metric = metric_named("accuracy", data(labels), outputs)
    assert metric is not None
    assert metric.score(outputs, labels) == 1.0
