"""The value of a metric of the user's: one number, or a sentence."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric, MetricCollection

from qat.messages import type_of


def value_of(source: Any, outputs: Sequence[Any], targets: Sequence[Any], name: str) -> tuple[float, dict[str, float]]:
    """The value of a metric over all batches, and those of the others of its collection.

    Args:
        source: a torchmetrics object or collection, or a function of (outputs, targets).
        outputs: of each batch.
        targets: of each batch.
        name: of the metric, for messages.

    Raises:
        ValueError: it cannot be computed, or is not one number.
    """
    if not isinstance(source, Metric | MetricCollection):
        with _users_metric(name):
            value = source(torch.cat(list(outputs)), torch.cat(list(targets)))
        return _one_number(value, name), {}
    fresh = source.clone().cpu()
    fresh.reset()
    with _users_metric(name):
        for batch in zip(outputs, targets, strict=True):
            fresh.update(*batch)
        values: Any = fresh.compute()
    if not isinstance(fresh, MetricCollection):
        return _one_number(values, name), {}
    numbers = {key: _one_number(value, key) for key, value in values.items()}
    return numbers.pop(next(iter(numbers))), numbers


@contextmanager
def _users_metric(name: str) -> Iterator[None]:
    """Inside the `with` block, whatever the user's metric raises is a ValueError that names it."""
    try:
        yield
    except Exception as error:
        found = " ".join(f"{type(error).__name__}: {error}".split())
        raise ValueError(
            f"Report(metric={name}) cannot be computed ({found}): give a metric of (outputs, targets), where outputs is the "
            "first tensor that the network returns, or its logits."
        ) from error


def _one_number(value: Any, name: str) -> float:
    if isinstance(value, Tensor) and value.numel() != 1:
        raise ValueError(
            f"Report(metric={name}) gives a tensor of shape {tuple(value.shape)}: give a metric with one number, such as its "
            "mean."
        )
    try:
        return float(value)
    except (TypeError, ValueError):
        raise ValueError(
            f"Report(metric={name}) gives {type_of(value)}: give a function of (outputs, targets) that returns a number."
        ) from None
