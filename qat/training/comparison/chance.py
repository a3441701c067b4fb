"""The value that a metric has by chance."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from qat.training.comparison.report_metric import ReportMetric


def value_by_chance(metric: ReportMetric, found: Metric | None, arguments: Sequence[tuple[Any, ...]]) -> float | None:
    """The value of these outputs in random order; None if it cannot be computed.

    Args:
        metric: what is measured.
        found: the torchmetrics object in the LightningModule, if that computes it.
        arguments: (outputs, targets) of each batch.
    """
    try:
        first, second = (torch.cat([batch[i] for batch in arguments]) for i in (0, 1))
        if bool((second == second[:1]).all()):  # one sample, or one class: their order tells nothing
            return None
        if metric.info is not None and metric.info.percent:
            return _expected_agreement(first, second)
        order = torch.randperm(len(first), generator=torch.Generator().manual_seed(0))
        drawn = torch.empty_like(first)
        drawn[order] = first[order.roll(1)]  # none stays in its place, which counts among few
        if not isinstance(metric.main, str | Metric):
            return float(metric.main(drawn, second))
        computing = metric.main if isinstance(metric.main, Metric) else found
        if computing is None:
            return None
        fresh = computing.clone().cpu()
        fresh.reset()
        fresh.update(drawn, second)
        return float(fresh.compute())
    except (RuntimeError, ValueError, TypeError, IndexError):
        return None


def _expected_agreement(decided: Tensor, targets: Tensor) -> float | None:
    """The accuracy of these decisions in random order: sum over the classes of how often it is decided and is right."""
    if targets.ndim != 1 or targets.is_floating_point() or decided.ndim != 1 or decided.is_floating_point():
        return None
    classes = int(max(decided.max(), targets.max())) + 1
    shares = [torch.bincount(x.long(), minlength=classes).double() / len(x) for x in (decided, targets)]
    return float(shares[0] @ shares[1])
