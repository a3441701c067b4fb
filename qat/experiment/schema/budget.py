"""The schema of `budget`: bits of every layer."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from qat.experiment.schema.nodes import wrong
from qat.experiment.schema.values import Bits, Section, Text

Cost = Annotated[float, Field(gt=0, le=1e18)]
LIMITS = ("size", "bops", "mean_bits", "latency")


class Budget(Section):
    """Chooses the bits of every layer under a budget; without any limit they are the policy's (docs/mixed_precision.md)."""

    size: Cost | None
    """limit in bytes, for the codes of weights, their scales, and what stays in float"""
    bops: Cost | None
    """limit of the bit operations for one sample: multiply-adds times bits of the weight times bits of the input"""
    mean_bits: Annotated[float, Field(gt=0, le=32)] | None
    """limit of the mean bits of the weights of all quantized layers"""
    latency: Cost | None
    """limit in milliseconds, as latency_table has them"""
    latency_table: Text | None
    """a YAML or JSON file with measured milliseconds, layer: {w4a8: 0.12, ...}"""
    weight_bits: Annotated[list[Bits], Field(min_length=1)]
    """the bits of weights that are tried"""
    activation_bits: list[Bits]
    """the bits of the inputs of layers that are tried; an empty list keeps the policy's"""
    keep: list[Text]
    """layers that keep the policy's bits: first, last, the match of a rule, or globs on names"""
    sensitivity: Literal["measured", "fisher"]
    """the harm of fewer bits: measured by the divergence of the outputs, or estimated by the Fisher information"""
    points: Annotated[int, Field(ge=0, le=100)]
    """for how many budgets the report computes the Pareto front; 0: none"""

    @model_validator(mode="after")
    def _check_limits(self) -> Budget:
        if (self.latency is None) != (self.latency_table is None):
            raise wrong("{key}={value}: a latency needs a latency_table, and a table a latency: write both.", "latency")
        return self
