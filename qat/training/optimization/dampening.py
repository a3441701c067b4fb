"""The gradient that dampens oscillating weights."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from qat.quantizers import Quantizer


@torch.no_grad()
def dampening_gradient(quantizer: Quantizer, weight: Tensor) -> Tensor:
    """The gradient of ||clip(w, lo, hi) - dequantize(quantize(w))||^2, where lo and hi are the outermost levels.

    Nagel et al. 2022 (https://arxiv.org/abs/2203.11086), eq. 5. Beyond lo and hi it is 0: there the clipped weight equals
    the quantized one.

    Returns:
        A tensor of the weight's shape and dtype.
    """
    codes = quantizer.quantize(weight)
    lo, hi = (
        quantizer.dequantize(quantizer.nearest_code(torch.full_like(codes, end))) for end in (-math.inf, math.inf)
    )
    return 2 * (weight.float().clamp(lo, hi) - quantizer.dequantize(codes)).to(weight.dtype)
