"""8-bit floating point (Micikevicius et al. 2022, "FP8 formats for deep learning", https://arxiv.org/abs/2209.05433)."""

from __future__ import annotations

from torch import Tensor

from qat.granularity import Granularity, PerBlock, PerTensor
from qat.quantizers.scaled_float import ScaledFloat
from qat.spec import SMALLEST_SCALE, QuantSpec


class FP8(ScaledFloat):
    """E4M3 or E5M2 times a float32 scale, max |x| / 448 or / 57344: per tensor, channel or group of a weight, for each token
    (row over the last axis) of the input of a linear layer, for the whole tensor in front of other layers.

    Differs from the paper: infinity of E5M2 is not used, values beyond the largest saturate; activations are scaled on their
    own values, not on those of earlier batches.

    Raises:
        ValueError: a grid that is not symmetric and signed, or bits other than 8.
    """

    elements = ("E4M3", "E5M2")
    axis_of_convolutions = None

    def _granularity(self, spec: QuantSpec, shape: tuple[int, ...]) -> Granularity:
        if shape:
            return spec.granularity
        return PerTensor() if self.axis is None else PerBlock(None, self.axis)

    def _names(self) -> tuple[str, ...]:
        return ("scale",)

    def scales_of(self, largest: Tensor) -> tuple[Tensor, ...]:
        return ((largest / self.format.largest).clamp(min=SMALLEST_SCALE),)

    def scale_from(self, *stored: Tensor) -> Tensor:
        (scale,) = stored
        return scale

    @property
    def format_name(self) -> str:
        return f"fp8 ({self.element})"
