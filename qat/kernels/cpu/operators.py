"""The functions that the autograd functions call: plain ones, and the same as operators of torch for torch.compile.

Call them only if `cpu.available()`. scale: one value, or one for each row of x. lo, hi: bounds of x / scale, or of x in
`clip_and_round`. Only the four of `Operators` can be called under torch.compile.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from qat.kernels.cpu.library import loaded_kernels
from qat.kernels.layout import dense, in_layout_of


class Operators(NamedTuple):
    """The first four functions below, plain or registered with torch."""

    fake_quantize: Callable[..., Tensor]
    fake_quantize_and_save: Callable[..., tuple[Tensor, Tensor]]
    fake_quantize_backward: Callable[..., tuple[Tensor, Tensor]]
    fake_quantize_backward_from_saved: Callable[..., tuple[Tensor, Tensor]]


def fake_quantize(x: Tensor, scale: Tensor, lo: float, hi: float) -> Tensor:
    """y. Nothing is saved: the backward pass reads x again."""
    return loaded_kernels().fake_quantize(dense(x), scale.contiguous(), lo, hi, save=False)[0]


def fake_quantize_and_save(x: Tensor, scale: Tensor, lo: float, hi: float) -> tuple[Tensor, Tensor]:
    """(y, saved): `saved` is int8, one byte per element, for `fake_quantize_backward_from_saved`."""
    y, saved = loaded_kernels().fake_quantize(dense(x), scale.contiguous(), lo, hi, save=True)
    assert saved is not None
    return y, saved


def fake_quantize_backward(grad: Tensor, x: Tensor, scale: Tensor, lo: float, hi: float) -> tuple[Tensor, Tensor]:
    """(dx, dscale); dscale has the shape of scale."""
    x = dense(x)
    dx, dscale = loaded_kernels().fake_quantize_backward(in_layout_of(grad, x), x, scale.contiguous(), lo, hi)
    return dx, dscale.reshape(scale.shape)


def fake_quantize_backward_from_saved(
    grad: Tensor, saved: Tensor, scale: Tensor, lo: float, hi: float
) -> tuple[Tensor, Tensor]:
    """(dx, dscale) from the saved bytes. Only the shape of scale is used."""
    grad = in_layout_of(grad, saved)
    dx, dscale = loaded_kernels().fake_quantize_backward_from_saved(grad, saved, lo, hi, scale.numel())
    return dx, dscale.reshape(scale.shape)


def clip_and_round(x: Tensor, lo: Tensor, hi: Tensor, scale: Tensor) -> Tensor:
    """`round(clamp(x, lo, hi) / scale) * scale`."""
    return loaded_kernels().clip_and_round(dense(x), lo.contiguous(), hi.contiguous(), scale.contiguous())


def clip_and_round_backward(
    grad: Tensor, x: Tensor, y: Tensor, lo: Tensor, hi: Tensor, scale: Tensor, slopes: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(dx, below, above, inner): sums of grad where x <= lo, of grad where x >= hi, and of grad * y - dx * x in between; each
    has the shape of scale.
    """
    x = dense(x)
    tensors = (in_layout_of(grad, x), x, in_layout_of(y, x))
    ranges = (lo.contiguous(), hi.contiguous(), scale.contiguous())
    dx, sums = loaded_kernels().clip_and_round_backward(*tensors, *ranges, slopes)
    below, above, inner = sums.reshape(3, *scale.shape)
    return dx, below, above, inner


def look_up(x: Tensor, scale: float, lo: float, hi: float, values: Tensor) -> tuple[Tensor, Tensor]:
    """(values[codes], codes), with codes = `round(clamp(x / scale, lo, hi)) - lo`, uint8."""
    return loaded_kernels().look_up(dense(x), scale, lo, hi, values)


def look_up_backward(grad: Tensor, codes: Tensor, slopes: Tensor) -> tuple[Tensor, Tensor]:
    """(dx, dvalues) of `look_up`."""
    return loaded_kernels().look_up_backward(in_layout_of(grad, codes), codes, slopes)


def _registered(function: Callable[..., Any], fake: Callable[..., Any]) -> Any:
    """`function` as an operator of torch.

    Its tag lets the compiler pass any memory order, instead of copying to the contiguous one.

    Args:
        fake: the same function without values: only shapes and dtypes.
    """
    name, tags = f"qat::{function.__name__}", [torch.Tag.flexible_layout]
    operator = torch.library.custom_op(name, function, mutates_args=(), tags=tags)
    operator.register_fake(fake)
    return operator


PLAIN = Operators(fake_quantize, fake_quantize_and_save, fake_quantize_backward, fake_quantize_backward_from_saved)

REGISTERED = Operators(
    _registered(fake_quantize, lambda x, scale, lo, hi: torch.empty_like(dense(x))),
    _registered(
        fake_quantize_and_save,
        lambda x, scale, lo, hi: (torch.empty_like(dense(x)), torch.empty_like(dense(x), dtype=torch.int8)),
    ),
    _registered(
        fake_quantize_backward,
        lambda grad, x, scale, lo, hi: (torch.empty_like(dense(x)), torch.empty_like(scale)),
    ),
    _registered(
        fake_quantize_backward_from_saved,
        lambda grad, saved, scale, lo, hi: (torch.empty_like(saved, dtype=grad.dtype), torch.empty_like(scale)),
    ),
)


def operators() -> Operators:
    """The registered operators while torch.compile traces, otherwise the plain functions, which have less overhead."""
    return REGISTERED if torch.compiler.is_compiling() else PLAIN
