"""Which tensors the compiled kernels compute on; torch's own operations do the others."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from qat.kernels import cpu


def uses_native(x: Tensor) -> bool:
    """Whether the compiled CPU kernels can read `x`."""
    return x.dtype is not torch.float64 and x.device.type == "cpu" and x.numel() > 0 and cpu.available()


def uses_native_by_rows(x: Tensor, scale: Tensor) -> bool:
    """Whether the compiled CPU kernels can read `x` with one scale for the whole tensor, or one for each row."""
    by_rows = scale.numel() == 1 or (scale.ndim == x.ndim and scale.numel() == len(x) == len(scale))
    return by_rows and uses_native(x) and (torch.compiler.is_compiling() or type(x) in (Tensor, nn.Parameter))
