"""int8 codes: how they are quantized and read. An int8 code is the uint8 code of the integer model less 128."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from qat.integer import Encoding
from qat.torch_private import quantized_decomposed

SHIFT = 128
"""uint8 code of the integer model - int8 code."""
LOWEST, HIGHEST = -128, 127

operations = quantized_decomposed()


def dequantize(codes: Tensor, x: Encoding) -> Tensor:
    """int8 codes -> float32."""
    real: Tensor = operations.dequantize_per_tensor(codes, x.scale, x.zero_point - SHIFT, LOWEST, HIGHEST, torch.int8)
    return real


def quantize(real: Tensor, y: Encoding) -> Tensor:
    """float32 -> int8 codes.

    Bounds of the grid that saturation does not give (a ReLU, fewer than 8 bits) are bounds of the float before it: the runtimes
    fuse those into the operation in front, and know nothing of narrower codes.
    """
    codes: Tensor = operations.quantize_per_tensor(
        bounded(real, y), y.scale, y.zero_point - SHIFT, LOWEST, HIGHEST, torch.int8
    )
    return codes


def bounded(real: Tensor, y: Encoding) -> Tensor:
    """Clamp to the values of the lowest and the highest code, as far as saturation at int8 does not do it."""
    if y.lowest == 0 and y.highest == 255:
        return real
    if y.lowest == y.zero_point and y.highest == 255:
        return torch.relu(real)
    lo, hi = ((code - y.zero_point) * y.scale for code in (y.lowest, y.highest))
    return F.hardtanh(real, lo, hi) if lo < hi else torch.clamp(real, lo, hi)  # XNNPACK fuses a hardtanh, and no clamp
