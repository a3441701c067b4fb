"""What `prepare` leaves on the module that it prepared: the policy, and what became of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from qat.structure import Description
from qat.transform.example import ExampleDescription
from qat.transform.policy import Policy
from qat.transform.rule import Rule

_ATTRIBUTE = "_qat"
LAYERS = "layer by layer"
"""The way of a model that has no graph."""


@dataclass(frozen=True)
class PreparedRecord:
    """What `prepare` was called with, and what it found.

    Attributes:
        policy: the policy.
        float_edges: tensors and operations left in float.
        notes: sentences for `inspect` to show.
        way: how the graph was captured: "torch.fx", "torch.export" or "layer by layer".
        example: the description of the example inputs, if there were any and they have one.
        reason: why an earlier way of capture was not taken; "" if none was tried.
        multiply_adds: operation of the graph -> its multiply-adds on the first inputs of the model; empty before these.
        training: whether the float network was in training mode.
        architecture: how the float network is built (`qat.structure`); None if that cannot be described.
        rules: layer, or other module with weights -> the rule of the policy that decided on it.
    """

    policy: Policy
    float_edges: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    way: str = ""
    example: ExampleDescription | None = None
    reason: str = ""
    multiply_adds: dict[str, int] = field(default_factory=dict)
    training: bool = False
    architecture: Description | None = None
    rules: Mapping[str, Rule] = field(default_factory=dict)

    @property
    def capture(self) -> dict[str, Any]:
        """What it takes, beside the policy, to prepare the same float network in the same way, as plain data."""
        return {"way": self.way, "example": self.example}


def write_record(model: nn.Module, record: PreparedRecord) -> None:
    """Attach `record` to `model`, in place. Copies of the model carry it, too."""
    vars(model)[_ATTRIBUTE] = record


def erase_record(model: nn.Module) -> None:
    """Undo `write_record`, in place."""
    vars(model).pop(_ATTRIBUTE, None)


def record_of(model: nn.Module) -> PreparedRecord | None:
    """The record of `model`; None if `prepare` was not called on this very module, but at most around it or inside it."""
    record: PreparedRecord | None = vars(model).get(_ATTRIBUTE)
    return record


def capture_of(model: nn.Module) -> dict[str, Any] | None:
    """`PreparedRecord.capture` of `model`; None if it has no record."""
    record = record_of(model)
    return None if record is None else record.capture


def is_prepared_root(model: nn.Module) -> bool:
    """Whether `prepare` was called on this very module, not on one around it or inside it."""
    return record_of(model) is not None
