"""Microscaling formats (OCP Microscaling Formats (MX) Specification, version 1.0, 2023; Rouhani et al., arXiv:2310.10537)."""

from __future__ import annotations

from torch import Tensor

from qat.floating_point import power_of_two_scales, shared_exponents
from qat.quantizers.scaled_float import BlockScaledFloat


class MX(BlockScaledFloat):
    """Blocks of 32 with a power of two (E8M0) as scale: MXFP8 (element E4M3 or E5M2), MXFP6 (E2M3 or E3M2), MXFP4 (E2M1) and
    MXINT8 (INT8).

    The scale is 2^(floor(log2(max |x|)) - emax), with emax the exponent of the element's largest value (section 6.3): the
    largest element of a block may saturate, by a quarter of its value at most (E2M1). MXINT8 leaves out the code -128, as the
    specification allows.

    Raises:
        ValueError: a grid that is not symmetric and signed, other bits than those of the element, or a weight with one input
            channel.
    """

    shared_exponent: Tensor
    """E8M0, uint8: the exponent + 127 of each block's scale."""
    elements = ("E2M1", "E2M3", "E3M2", "E4M3", "E5M2", "INT8")
    block_size = 32
    scale_bits = 8

    def _names(self) -> tuple[str, ...]:
        return ("shared_exponent",)

    def scales_of(self, largest: Tensor) -> tuple[Tensor, ...]:
        return (shared_exponents(largest, self.format),)

    def scale_from(self, *stored: Tensor) -> Tensor:
        (exponent,) = stored
        return power_of_two_scales(exponent)

    @property
    def format_name(self) -> str:
        kind = "int8" if self.element == "INT8" else f"fp{self.format.bits} ({self.element})"
        return f"mx{kind}"
