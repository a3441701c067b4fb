"""The memory order of tensors: kernels walk through memory, so all their tensors must have the same one."""

from __future__ import annotations

import torch
from torch import Tensor


def is_channels_last(x: Tensor) -> bool:
    """Whether `x` is a 4-D tensor in the channels-last memory format."""
    return x.ndim == 4 and x.is_contiguous(memory_format=torch.channels_last)


def dense(x: Tensor) -> Tensor:
    """`x` itself if it is contiguous or channels-last, otherwise a contiguous copy."""
    return x if is_channels_last(x) else x.contiguous()


def in_layout_of(x: Tensor, other: Tensor) -> Tensor:
    """`x` in the memory order of `other`, which has the same shape."""
    return x if x.stride() == other.stride() else torch.empty_like(other, dtype=x.dtype).copy_(x)
