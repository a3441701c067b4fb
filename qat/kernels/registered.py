"""Fake quantization as operators of torch, which torch.compile keeps whole. Each runs the backend for its tensors' device."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from qat.kernels.dispatch import operators_for
from qat.kernels.layout import dense


def _registered(fake: Callable[..., Any]) -> Callable[[Callable[..., Any]], Any]:
    """The decorated function as an operator of torch.

    Its tag lets the compiler pass any memory order, instead of copying to the contiguous one.

    Args:
        fake: the same function without values: only shapes and dtypes.
    """

    def register(function: Callable[..., Any]) -> Any:
        name, tags = f"qat::{function.__name__}", [torch.Tag.flexible_layout]
        operator = torch.library.custom_op(name, function, mutates_args=(), tags=tags)
        operator.register_fake(fake)
        return operator

    return register


@_registered(lambda x, scale, lo, hi: torch.empty_like(dense(x)))
def fake_quantize(x: Tensor, scale: Tensor, lo: float, hi: float) -> Tensor:
    """`Operators.fake_quantize` of the backend: y, in the shape of x."""
    return operators_for(x).fake_quantize(x, scale, lo, hi)


@_registered(lambda x, scale, lo, hi: (torch.empty_like(dense(x)), torch.empty_like(dense(x), dtype=torch.int8)))
def fake_quantize_and_save(x: Tensor, scale: Tensor, lo: float, hi: float) -> tuple[Tensor, Tensor]:
    """`Operators.fake_quantize_and_save` of the backend: (y, saved), the latter one int8 per element."""
    return operators_for(x).fake_quantize_and_save(x, scale, lo, hi)


@_registered(lambda grad, x, scale, lo, hi: (torch.empty_like(dense(x), dtype=grad.dtype), torch.empty_like(scale)))
def fake_quantize_backward(grad: Tensor, x: Tensor, scale: Tensor, lo: float, hi: float) -> tuple[Tensor, Tensor]:
    """`Operators.fake_quantize_backward` of the backend: (dx, dscale), from x."""
    return operators_for(x).fake_quantize_backward(grad, x, scale, lo, hi)


@_registered(lambda grad, saved, scale, lo, hi: (torch.empty_like(saved, dtype=grad.dtype), torch.empty_like(scale)))
def fake_quantize_backward_from_saved(
    grad: Tensor, saved: Tensor, scale: Tensor, lo: float, hi: float
) -> tuple[Tensor, Tensor]:
    """`Operators.fake_quantize_backward_from_saved` of the backend: (dx, dscale), from the saved bytes."""
    return operators_for(saved).fake_quantize_backward_from_saved(grad, saved, scale, lo, hi)
