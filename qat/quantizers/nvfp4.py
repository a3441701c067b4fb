"""NVFP4 (NVIDIA 2025, "Pretraining large language models with NVFP4", https://arxiv.org/abs/2509.25149)."""

from __future__ import annotations

from torch import Tensor

from qat.floating_point import two_level_scales, two_level_values
from qat.quantizers.scaled_float import BlockScaledFloat


class NVFP4(BlockScaledFloat):
    """E2M1 in blocks of 16 with an E4M3 scale each, and a float32 scale for the tensor, which brings those into range.

    Differs from the paper: rounding is to nearest in the backward pass, too, and there is no Hadamard transform; the tensor's
    scale of an activation is that of the batch.

    Raises:
        ValueError: a grid that is not symmetric and signed, bits other than 4, or a weight with one input channel.
    """

    block_scale: Tensor
    """The bits of each block's E4M3 scale, uint8."""
    tensor_scale: Tensor
    """float32 (1,)."""
    elements = ("E2M1",)
    block_size = 16
    scale_bits = 8

    def _names(self) -> tuple[str, ...]:
        return ("block_scale", "tensor_scale")

    def scales_of(self, largest: Tensor) -> tuple[Tensor, ...]:
        return two_level_scales(largest, largest.amax().reshape(1) if largest.numel() else largest.new_zeros(1))

    def scale_from(self, *stored: Tensor) -> Tensor:
        return two_level_values(*stored)

    @property
    def format_name(self) -> str:
        return "nvfp4"
