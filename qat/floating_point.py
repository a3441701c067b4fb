"""Floating-point formats of few bits, on plain tensors: their values, rounding to them, and their numbering.

The formats of OCP ("8-bit Floating Point Specification", OFP8, revision 1.0; "Microscaling Formats (MX) Specification",
version 1.0). Rounding is half to even and saturates: what is beyond the largest value becomes it; NaN stays NaN.

Here a code is the rank of a value: 0 for 0, 1 for the smallest positive value, -1 for its negative, and so on. Codes are
ordered as their values are. The bits of the format are the magnitude of the code, with the sign in the highest bit
(`bit_patterns`). Negative zero is stored as zero.

| format | bits | exponent, mantissa | largest | smallest normal | smallest |
|---|---|---|---|---|---|
| E4M3 | 8 | 4, 3 | 448 | 2^-6 | 2^-9 |
| E5M2 | 8 | 5, 2 | 57344 | 2^-14 | 2^-16 |
| E3M2 | 6 | 3, 2 | 28 | 2^-2 | 2^-4 |
| E2M3 | 6 | 2, 3 | 7.5 | 1 | 2^-3 |
| E2M1 | 4 | 2, 1 | 6 | 1 | 2^-1 |
| INT8 | 8 | -, 6 | 127 / 64 | - | 2^-6 |

INT8 is the element of MXINT8, with steps of 2^-6 everywhere: as a floating-point format, one with a single exponent bit.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

EXPONENT_BIAS = 127
"""The exponent bias of float32, and of E8M0."""


@dataclass(frozen=True)
class FloatFormat:
    """A sign, exponent bits and mantissa bits, with subnormal numbers and without infinity.

    >>> E2M1.round(torch.tensor([0.25, 0.75, 1.7, -5.0, 100.0]))
    tensor([ 0.0000,  1.0000,  1.5000, -4.0000,  6.0000])
    >>> E2M1.codes(torch.tensor([0.5, -4.0, 6.0]))
    tensor([ 1., -6.,  7.])
    """

    name: str
    exponent_bits: int
    mantissa_bits: int
    bias: int
    largest: float

    @property
    def bits(self) -> int:
        """How many bits a value takes."""
        return 1 + self.exponent_bits + self.mantissa_bits

    @property
    def lowest_exponent(self) -> int:
        """The exponent of the smallest normal number, and of all subnormal ones."""
        return 1 - self.bias

    @property
    def highest_exponent(self) -> int:
        """floor(log2(largest)): the emax of the MX specification."""
        return int(exponents(torch.tensor(self.largest)))

    @property
    def highest_code(self) -> int:
        """The code of the largest value."""
        return int(self.codes(torch.tensor(self.largest)))

    def round(self, x: Tensor) -> Tensor:
        """The nearest value of the format, ties to even, float32; at most `largest` in magnitude."""
        clamped = x.float().clamp(-self.largest, self.largest)
        step = power_of_two(self._exponents(clamped) - self.mantissa_bits)
        return torch.round(clamped / step) * step

    def codes(self, values: Tensor) -> Tensor:
        """The codes of values that `round` returned: whole numbers held in float32."""
        exponent = self._exponents(values)
        steps = values.abs() / power_of_two(exponent - self.mantissa_bits)
        below = (exponent - self.lowest_exponent) * 2**self.mantissa_bits
        return torch.sign(values) * (steps + below)

    def values(self, codes: Tensor) -> Tensor:
        """The values of codes: float32."""
        table = TABLES[self.name]
        return table.to(codes.device)[codes.long() + len(table) // 2]

    def bit_patterns(self, codes: Tensor) -> Tensor:
        """The bits of the format as uint8, in its lowest `bits` bits: what hardware and other libraries read."""
        sign = (codes < 0).to(torch.uint8) << (self.bits - 1)
        return codes.abs().to(torch.uint8) | sign

    def _exponents(self, x: Tensor) -> Tensor:
        return exponents(x).clamp(min=self.lowest_exponent)


E4M3 = FloatFormat("E4M3", 4, 3, 7, 448.0)
E5M2 = FloatFormat("E5M2", 5, 2, 15, 57344.0)
E3M2 = FloatFormat("E3M2", 3, 2, 3, 28.0)
E2M3 = FloatFormat("E2M3", 2, 3, 1, 7.5)
E2M1 = FloatFormat("E2M1", 2, 1, 1, 6.0)
INT8 = FloatFormat("INT8", 1, 6, 1, 127 / 64)
FORMATS = {found.name: found for found in (E4M3, E5M2, E3M2, E2M3, E2M1, INT8)}


def _all_values(element: FloatFormat) -> Tensor:
    """All values of the format, ascending: float32 (2 * highest_code + 1,)."""
    magnitudes = torch.arange(element.highest_code + 1, dtype=torch.int32)
    above = ((magnitudes >> element.mantissa_bits) - 1).clamp(min=0)
    steps = magnitudes - above * 2**element.mantissa_bits
    values = steps * power_of_two(above + (element.lowest_exponent - element.mantissa_bits))
    return torch.cat([-values[1:].flip(0), values])


def exponents(x: Tensor) -> Tensor:
    """floor(log2 |x|) of float32 numbers, exactly, as int32; -127 for 0 and subnormal numbers, 128 for infinity and NaN."""
    return ((x.float().contiguous().view(torch.int32) >> 23) & 0xFF) - EXPONENT_BIAS


def power_of_two(exponent: Tensor) -> Tensor:
    """2^exponent, exactly, float32. exponent: int32, -126 to 127."""
    return ((exponent + EXPONENT_BIAS) << 23).view(torch.float32)


def shared_exponents(largest: Tensor, element: FloatFormat) -> Tensor:
    """The E8M0 scales of blocks: the power of two of the largest magnitude, divided by that of the largest element.

    2^(floor(log2(largest)) - emax), as its exponent + 127 in 0..254, uint8 (MX specification, section 6.3), clamped to that
    range; a block of zeros gets 0. A block with an infinite value or NaN gets 255, which is NaN.

    Args:
        largest: float32, >= 0, any shape: the largest magnitude of each block.
        element: the format of the elements.

    >>> shared_exponents(torch.tensor([0.0, 1.0, 6.0, 7.9, 8.0]), E2M1)
    tensor([  0, 125, 127, 127, 128], dtype=torch.uint8)
    """
    biased = (exponents(largest) - element.highest_exponent + EXPONENT_BIAS).clamp(0, 254)
    return torch.where(torch.isfinite(largest), biased, 255).to(torch.uint8)


def power_of_two_scales(stored: Tensor) -> Tensor:
    """The float32 values of E8M0 numbers (uint8): 2^-127 to 2^127, and NaN for 255."""
    return E8M0.to(stored.device)[stored.long()]


def two_level_scales(largest: Tensor, largest_of_all: Tensor) -> tuple[Tensor, Tensor]:
    """The scales of NVFP4: one of E4M3 for each block, and one of float32 for the tensor.

    The tensor's scale is largest_of_all / (448 * 6), so that the block with the largest value has the largest E4M3 scale; a
    block's is E4M3(largest / 6 / tensor's scale), at least the smallest positive number, 2^-9 (NVIDIA, "Pretraining large
    language models with NVFP4", arXiv:2509.25149, appendix C; ModelOpt `NVFP4QTensor`, which has the same smallest scale).

    Args:
        largest: float32, >= 0, any shape: the largest magnitude of each block.
        largest_of_all: float32 (1,).

    Returns:
        The bits of the blocks' E4M3 scales, uint8, 127 (NaN) in blocks with NaN or infinite values; the tensor's scale (1,).
    """
    of_tensor = (largest_of_all / (E4M3.largest * E2M1.largest)).clamp(min=SMALLEST_TENSOR_SCALE)
    of_blocks = E4M3.round(largest / E2M1.largest / of_tensor).clamp(min=2.0**-9)
    known = torch.isfinite(largest) & torch.isfinite(of_tensor)
    return torch.where(known, E4M3.codes(of_blocks), E4M3_NAN).to(torch.uint8), of_tensor


def two_level_values(of_blocks: Tensor, of_tensor: Tensor) -> Tensor:
    """The float32 scales of blocks, from what `two_level_scales` returns."""
    known = E4M3.values(of_blocks.clamp(max=E4M3_NAN - 1))
    return torch.where(of_blocks == E4M3_NAN, torch.nan, known) * of_tensor


SMALLEST_TENSOR_SCALE = 2.0**-60
"""The tensor's scale where all values are zero."""
E4M3_NAN = 127
"""The bits of NaN in E4M3."""
TABLES = {element.name: _all_values(element) for element in FORMATS.values()}
"""All values of each format, ascending."""
E8M0 = torch.tensor([2.0**exponent for exponent in range(-EXPONENT_BIAS, 128)] + [torch.nan])
"""The value of each byte as an E8M0 number: float32 (256,)."""
