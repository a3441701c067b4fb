"""The schema of `budget`: bits of every layer."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from qat.experiment.schema.nodes import wrong
from qat.experiment.schema.values import Bits, Section, Text

Cost = Annotated[float, Field(gt=0, le=1e18)]
LIMITS = ("size", "bops", "mean_bits", "latency")


class Budget(Section):
    """Bits of every layer, so that a budget is kept; without a limit, those of the policy (docs/mixed_precision.md)."""

    size: Cost | None
    """bytes of codes, scales and what stays in float"""
    bops: Cost | None
    """bit operations of one sample: multiply-adds times bits of the weight times bits of the input"""
    mean_bits: Annotated[float, Field(gt=0, le=32)] | None
    """of the weights of all quantized layers"""
    latency: Cost | None
    """milliseconds, by latency_table"""
    latency_table: Text | None
    """a YAML or JSON file with measured times, layer: {w4a8: 0.12, ...}"""
    weight_bits: Annotated[list[Bits], Field(min_length=1)]
    """widths of weights that are tried"""
    activation_bits: list[Bits]
    """widths of the inputs of layers that are tried; none: the policy's"""
    keep: list[Text]
    """layers that keep the policy's bits: matches of rules, or globs on names"""
    sensitivity: Literal["measured", "fisher"]
    """what fewer bits of a tensor cost: the divergence of the outputs, or an estimate of it to second order"""
    points: Annotated[int, Field(ge=0, le=100)]
    """budgets for which the Pareto front of the report is computed; 0: none"""

    @model_validator(mode="after")
    def _check_limits(self) -> Budget:
        if (self.latency is None) != (self.latency_table is None):
            raise wrong("{key}={value}: a latency needs a latency_table, and a table a latency: write both.", "latency")
        return self
