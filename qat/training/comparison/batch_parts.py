"""Targets and outputs as a metric takes them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

TARGET_NAMES = ("labels", "label", "targets", "target", "y")


def batch_targets(batch: Any) -> Any:
    """The targets of a batch: the second part of (inputs, targets), or what is called labels or targets; None if it has none.

    >>> batch_targets({"x": 1, "labels": 2}), batch_targets((1, 2)), batch_targets(1)
    (2, 2, None)
    """
    if isinstance(batch, Mapping):
        return next((batch[name] for name in TARGET_NAMES if name in batch), None)
    return batch[1] if isinstance(batch, tuple | list) and len(batch) > 1 else None


def first_output(output: Any) -> Any:
    """The output that counts: of a mapping its logits, else its first value; of a tuple the first."""
    if isinstance(output, Mapping):
        return output["logits"] if "logits" in output else next(iter(output.values()))
    return output[0] if isinstance(output, tuple | list) and output else output
