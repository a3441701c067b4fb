"""Which backend computes on a tensor. Without one, torch's own operations do."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from qat.kernels import cpu, triton
from qat.kernels.operators import Operators


def uses_native(x: Tensor) -> bool:
    """Whether a backend can read `x`. Values are not looked at, so no device is waited for."""
    available = {"cpu": cpu.available, "cuda": triton.available}.get(x.device.type)
    return x.dtype is not torch.float64 and x.numel() > 0 and available is not None and available()


def uses_native_by_rows(x: Tensor, scale: Tensor) -> bool:
    """Whether a backend can read `x` with one scale for the whole tensor, or one for each row."""
    by_rows = scale.numel() == 1 or (scale.ndim == x.ndim and scale.numel() == len(x) == len(scale))
    return by_rows and uses_native(x) and (torch.compiler.is_compiling() or type(x) in (Tensor, nn.Parameter))


def operators_for(x: Tensor) -> Operators:
    """The functions of the backend of x's device; only if `uses_native(x)`."""
    return triton.operators() if x.device.type == "cuda" else cpu.operators()
