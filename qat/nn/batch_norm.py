"""BatchNorm as what it is in evaluation mode: one gain and one shift a channel."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


def affine_of(norm: nn.Module) -> tuple[Tensor, Tensor]:
    """(gain, shift) of a BatchNorm in evaluation mode, float64 (channels,). Raises ValueError without running statistics."""
    assert isinstance(norm, _BatchNorm)
    if norm.running_mean is None or norm.running_var is None:
        raise ValueError("a BatchNorm with track_running_stats=False has no constants to absorb.")
    gain = (norm.running_var.double() + norm.eps).rsqrt()
    if norm.weight is not None:
        gain = gain * norm.weight.double()
    shift = -norm.running_mean.double() * gain
    return gain, shift if norm.bias is None else shift + norm.bias.double()
