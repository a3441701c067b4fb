"""Zeros in the weights of an integer model: what a file stores."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from qat.nn import outputs_first
from qat.sparsity.masks import Pattern, pattern_axis_fits, violations


class Zeros(NamedTuple):
    """How many codes one weight has, how many of them mean zero, and how many groups break the pattern (None: none fits)."""

    weights: int
    zeros: int
    violations: int | None


def count_zeros(integer: nn.Module, pattern: Pattern | None = None) -> dict[str, Zeros]:
    """Count the zeros of every stored weight of an integer model, by the name of its module.

    Args:
        integer: from `qat.convert`.
        pattern: counts the groups that break it, too; None: no pattern.
    """
    found = {}
    for name, module in integer.named_modules():
        values = values_of_codes(module)
        if values is None:
            continue
        fits = pattern is not None and pattern_axis_fits(values, pattern)
        broken = violations(values, pattern) if pattern is not None and fits else None
        found[name] = Zeros(values.numel(), int(torch.sum(values == 0)), broken)
    return found


def values_of_codes(module: nn.Module) -> Tensor | None:
    """The codes of a module's weight less their zero-points, int64 [out, in / groups, ...]; None without such a weight."""
    tensors = dict(module.named_buffers(recurse=False))
    codes, zero_point = tensors.get("weight"), tensors.get("weight_zero_point")
    if not isinstance(codes, Tensor) or codes.is_floating_point() or codes.ndim < 2:
        return None
    values, view = codes.long(), getattr(module, "view", codes.shape)
    if isinstance(zero_point, Tensor) and bool(zero_point.any()):
        values = (codes.reshape(view).long() - zero_point.long()).reshape(codes.shape)
    return outputs_first(getattr(module, "layer", None), values)
