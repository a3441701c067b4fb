"""The value that a metric has by chance."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
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
        compute = _computing(metric, found)
        if metric.info is not None and metric.info.percent:
            decided = first.argmax(1) if first.ndim == 2 and first.shape[1] > 1 else first
            right = float((decided == second).double().mean())
            if (
                compute is None
                or isinstance(metric.source, str)
                or math.isclose(compute(first, second), right, rel_tol=1e-6)
            ):
                return _expected_agreement(decided, second)
        order = torch.randperm(len(first), generator=torch.Generator().manual_seed(0))
        drawn = torch.empty_like(first)
        drawn[order] = first[order.roll(1)]  # none stays in its place, which counts among few
        return None if compute is None else compute(drawn, second)
    except (RuntimeError, ValueError, TypeError, IndexError):
        return None


def _computing(metric: ReportMetric, found: Metric | None) -> Callable[[Tensor, Tensor], float] | None:
    """The metric as a function of (outputs, targets); None if test_step computes it in a way that is not known."""
    if not isinstance(metric.main, str | Metric):
        return lambda outputs, targets: float(metric.main(outputs, targets))
    computing = metric.main if isinstance(metric.main, Metric) else found
    if computing is None:
        return None

    def compute(outputs: Tensor, targets: Tensor) -> float:
        fresh = computing.clone().cpu()
        fresh.reset()
        fresh.update(outputs, targets)
        return float(fresh.compute())

    return compute


def _expected_agreement(decided: Tensor, targets: Tensor) -> float | None:
    """The accuracy of these decisions in random order: sum over the classes of how often it is decided and is right."""
    if targets.ndim != 1 or targets.is_floating_point() or decided.ndim != 1 or decided.is_floating_point():
        return None
    classes = int(max(decided.max(), targets.max())) + 1
    shares = [torch.bincount(x.long(), minlength=classes).double() / len(x) for x in (decided, targets)]
    return float(shares[0] @ shares[1])
