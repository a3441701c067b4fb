"""The kernels for autograd, called directly, and as operators of torch, which torch.compile can call.

Only where `kernels()` is not None. scale: one value, or one for each row of x. lo, hi: bounds of x / scale.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from qat.kernels.cpu.library import compiled
from qat.kernels.layout import dense, in_layout_of


class Operators(NamedTuple):
    """The first four functions below, or what stands for them."""

    fake_quantize: Callable[..., Tensor]
    fake_quantize_and_keep: Callable[..., tuple[Tensor, Tensor]]
    backward: Callable[..., tuple[Tensor, Tensor]]
    backward_kept: Callable[..., tuple[Tensor, Tensor]]


def fake_quantize(x: Tensor, scale: Tensor, lo: float, hi: float) -> Tensor:
    """y; nothing is kept, the backward reads x again."""
    return compiled().forward(dense(x), scale.contiguous(), lo, hi, keep=False)[0]


def fake_quantize_and_keep(x: Tensor, scale: Tensor, lo: float, hi: float) -> tuple[Tensor, Tensor]:
    """(y, kept): int8, one byte an element."""
    y, kept = compiled().forward(dense(x), scale.contiguous(), lo, hi, keep=True)
    assert kept is not None
    return y, kept


def backward(grad: Tensor, x: Tensor, scale: Tensor, lo: float, hi: float) -> tuple[Tensor, Tensor]:
    """(dx, dscale), dscale of the shape of scale."""
    x = dense(x)
    dx, dscale = compiled().backward(in_layout_of(grad, x), x, scale.contiguous(), lo, hi)
    return dx, dscale.reshape(scale.shape)


def backward_kept(grad: Tensor, kept: Tensor, scale: Tensor, lo: float, hi: float) -> tuple[Tensor, Tensor]:
    """The same from what was kept. Of scale only the shape matters."""
    dx, dscale = compiled().backward_kept(in_layout_of(grad, kept), kept, lo, hi, scale.numel())
    return dx, dscale.reshape(scale.shape)


def clip_and_round(x: Tensor, lo: Tensor, hi: Tensor, scale: Tensor) -> Tensor:
    """`round(clamp(x, lo, hi) / scale) * scale`; not for torch.compile."""
    return compiled().clip_and_round(dense(x), lo.contiguous(), hi.contiguous(), scale.contiguous())


def clip_and_round_backward(
    grad: Tensor, x: Tensor, y: Tensor, lo: Tensor, hi: Tensor, scale: Tensor, slopes: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(dx, below, above, inner): sums of grad at lo or below, of grad at hi or above, of grad * y - dx * x between them, of the
    shape of scale; not for torch.compile.
    """
    x = dense(x)
    same = (in_layout_of(grad, x), x, in_layout_of(y, x))
    dx, sums = compiled().clip_and_round_backward(*same, lo.contiguous(), hi.contiguous(), scale.contiguous(), slopes)
    below, above, inner = sums.reshape(3, *scale.shape)
    return dx, below, above, inner


def look_up(x: Tensor, scale: float, lo: float, hi: float, values: Tensor) -> tuple[Tensor, Tensor]:
    """(values[code], codes); not for torch.compile."""
    return compiled().look_up(dense(x), scale, lo, hi, values)


def look_up_backward(grad: Tensor, codes: Tensor, slopes: Tensor) -> tuple[Tensor, Tensor]:
    """(dx, dvalues) of `look_up`."""
    return compiled().look_up_backward(in_layout_of(grad, codes), codes, slopes)


def _registered(function: Callable[..., Any], shapes: Callable[..., Any]) -> Any:
    """shapes: the same function without values. Any memory order will do: the compiler need not copy into the usual one."""
    name, tags = f"qat::{function.__name__}", [torch.Tag.flexible_layout]
    operator = torch.library.custom_op(name, function, mutates_args=(), tags=tags)
    operator.register_fake(shapes)
    return operator


DIRECT = Operators(fake_quantize, fake_quantize_and_keep, backward, backward_kept)

REGISTERED = Operators(
    _registered(fake_quantize, lambda x, scale, lo, hi: torch.empty_like(dense(x))),
    _registered(
        fake_quantize_and_keep,
        lambda x, scale, lo, hi: (torch.empty_like(dense(x)), torch.empty_like(dense(x), dtype=torch.int8)),
    ),
    _registered(backward, lambda grad, x, scale, lo, hi: (torch.empty_like(dense(x)), torch.empty_like(scale))),
    _registered(
        backward_kept,
        lambda grad, kept, scale, lo, hi: (torch.empty_like(kept, dtype=grad.dtype), torch.empty_like(scale)),
    ),
)


def operators() -> Operators:
    """The operators that torch.compile knows while it is compiling, else plain functions, which cost less."""
    return REGISTERED if torch.compiler.is_compiling() else DIRECT
