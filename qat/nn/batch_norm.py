"""BatchNorm: which modules count as one, and their gain and shift per channel in evaluation mode."""

from __future__ import annotations

from torch import Tensor, nn

from qat.torch_private import BatchNorm


def is_batch_norm(module: nn.Module) -> bool:
    """Whether the module computes what BatchNorm or SyncBatchNorm does; a subclass with a forward of its own may do more.

    Lightning reverts SyncBatchNorm to a class of its own, whose forward is BatchNorm's.
    """
    own = (BatchNorm.forward, nn.SyncBatchNorm.forward)
    is_one = isinstance(module, BatchNorm) and type(module).forward in own and "forward" not in vars(module)
    return is_one and type(module).__call__ is nn.Module.__call__


def gain_and_shift(norm: nn.Module) -> tuple[Tensor, Tensor]:
    """y = gain * x + shift is what `norm` computes in evaluation mode.

    Returns:
        (gain, shift), each float64 (channels,).

    Raises:
        ValueError: `norm` has no running statistics.
    """
    assert isinstance(norm, BatchNorm)
    if norm.running_mean is None or norm.running_var is None:
        raise ValueError(
            "a BatchNorm with track_running_stats=False has no running statistics, so it cannot be absorbed into a layer."
        )
    gain = (norm.running_var.double() + norm.eps).rsqrt()
    if norm.weight is not None:
        gain = gain * norm.weight.double()
    shift = -norm.running_mean.double() * gain
    return gain, shift if norm.bias is None else shift + norm.bias.double()
