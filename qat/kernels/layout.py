"""Which tensors a backend can read, and in which memory order."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from qat.kernels import cpu


def is_native(x: Tensor) -> bool:
    """Whether the compiled CPU kernels can read `x`."""
    return x.dtype is not torch.float64 and x.device.type == "cpu" and x.numel() > 0 and cpu.available()


def is_native_by_rows(x: Tensor, scale: Tensor) -> bool:
    """Whether the compiled CPU kernels can read `x` with one scale for the whole tensor, or one for each row."""
    by_rows = scale.numel() == 1 or (scale.ndim == x.ndim and scale.numel() == len(x) == len(scale))
    return by_rows and is_native(x) and (torch.compiler.is_compiling() or type(x) in (Tensor, nn.Parameter))


def is_channels_last(x: Tensor) -> bool:
    """Whether a 4-D tensor lies in memory channels last."""
    return x.ndim == 4 and x.is_contiguous(memory_format=torch.channels_last)


def dense(x: Tensor) -> Tensor:
    """`x` itself if it fills its memory in the usual or the channels-last order; otherwise a copy that does."""
    return x if is_channels_last(x) else x.contiguous()


def in_layout_of(x: Tensor, other: Tensor) -> Tensor:
    """`x` in the memory order of `other`, which has the same shape."""
    return x if x.stride() == other.stride() else torch.empty_like(other, dtype=x.dtype).copy_(x)
