"""What `prepare` leaves on the module that it prepared: the policy, and what became of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import nn

from qat.transform.policy import Policy

if TYPE_CHECKING:
    from qat.transform.inspect import Inspection  # which reads records

_ATTRIBUTE = "_qat"


@dataclass(frozen=True)
class PreparedRecord:
    """policy: what `prepare` was called with. inspection: float edges and notes from then; lines are read off the model."""

    policy: Policy
    inspection: Inspection


def write_record(model: nn.Module, record: PreparedRecord) -> None:
    """Attach `record` to `model`, in place. Copies of the model carry it, too."""
    vars(model)[_ATTRIBUTE] = record


def record_of(model: nn.Module) -> PreparedRecord | None:
    """The record of `model`; None if `prepare` was not called on this very module, but at most around it or inside it."""
    record: PreparedRecord | None = vars(model).get(_ATTRIBUTE)
    return record


def is_prepared_root(model: nn.Module) -> bool:
    """Whether `prepare` was called on this very module, not on one around it or inside it."""
    return record_of(model) is not None
