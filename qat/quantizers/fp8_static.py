"""8-bit floating point with a calibrated scale (Micikevicius et al. 2022, https://arxiv.org/abs/2209.05433)."""

from __future__ import annotations

from qat.granularity import Granularity, PerTensor
from qat.quantizers.fp8 import FP8
from qat.spec import QuantSpec


class FP8Static(FP8):
    """The input of a layer as E4M3 or E5M2 times one float32 scale, which calibration sets and nothing changes afterwards.

    The scale is the range of the observer / 448 or / 57344. Unlike with `FP8` nothing is measured in each call, so ONNX has it:
    QuantizeLinear to its own FP8 types, which ONNX Runtime computes. Gradient: straight-through everywhere.

    Differs from the paper: infinity of E5M2 is not used, values beyond the largest saturate.

    Args:
        observer: finds the range. MinMax keeps every value that was seen, which a format with this range can afford; observers
            that search for the best clipping assume integers.

    Raises:
        ValueError: a weight, a grid that is not symmetric and signed, or bits other than 8.
    """

    is_dynamic = False

    def _granularity(self, spec: QuantSpec, shape: tuple[int, ...]) -> Granularity:
        if shape:
            raise ValueError(
                "FP8Static is for inputs of layers: write quantizer: FP8 for weights, whose scales are stored."
            )
        return PerTensor()

    @property
    def format_name(self) -> str:
        return f"static {super().format_name}"
