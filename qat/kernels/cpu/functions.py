"""The functions that the autograd functions call, on the CPU. Call them only if `cpu.available()`."""

from __future__ import annotations

import torch
from torch import Tensor

from qat.kernels.cpu.library import loaded_kernels
from qat.kernels.layout import dense, in_layout_of
from qat.kernels.operators import Operators


def fake_quantize(x: Tensor, scale: Tensor, lo: float, hi: float) -> Tensor:
    """The quantized values y. Nothing is saved: the backward pass reads x again."""
    return loaded_kernels().fake_quantize(_read(dense(x)), scale.contiguous(), lo, hi, save=False)[0].to(x.dtype)


def fake_quantize_and_save(x: Tensor, scale: Tensor, lo: float, hi: float) -> tuple[Tensor, Tensor]:
    """(y, saved): `saved` is int8, one byte per element, for `fake_quantize_backward_from_saved`."""
    y, saved = loaded_kernels().fake_quantize(_read(dense(x)), scale.contiguous(), lo, hi, save=True)
    assert saved is not None
    return y.to(x.dtype), saved


def fake_quantize_backward(grad: Tensor, x: Tensor, scale: Tensor, lo: float, hi: float) -> tuple[Tensor, Tensor]:
    """(dx, dscale); dscale has the shape of scale."""
    x = dense(x).float()
    g = in_layout_of(grad, x).float()
    dx, dscale = loaded_kernels().fake_quantize_backward(g, x, scale.contiguous(), lo, hi)
    return dx.to(grad.dtype), dscale.reshape(scale.shape)


def fake_quantize_backward_from_saved(
    grad: Tensor, saved: Tensor, scale: Tensor, lo: float, hi: float
) -> tuple[Tensor, Tensor]:
    """(dx, dscale) from the saved bytes. Only the shape of scale is used."""
    g = _read(in_layout_of(grad, saved))
    dx, dscale = loaded_kernels().fake_quantize_backward_from_saved(g, saved, lo, hi, scale.numel())
    return dx.to(grad.dtype), dscale.reshape(scale.shape)


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
    dx, sums = loaded_kernels().clip_and_round_backward(*tensors, *ranges, slopes.contiguous().float())
    below, above, inner = sums.reshape(3, *scale.shape)
    return dx, below, above, inner


def look_up(x: Tensor, scale: Tensor, lo: float, hi: float, values: Tensor) -> tuple[Tensor, Tensor]:
    """(values[codes], codes), with codes = `round(clamp(x / scale, lo, hi)) - lo`, uint8."""
    return loaded_kernels().look_up(dense(x), scale.item(), lo, hi, values.float())


def look_up_backward(grad: Tensor, codes: Tensor, slopes: Tensor) -> tuple[Tensor, Tensor]:
    """(dx, dvalues) of `look_up`."""
    return loaded_kernels().look_up_backward(in_layout_of(grad, codes), codes, slopes.float())


def _read(x: Tensor) -> Tensor:
    """x in a type that the kernels of fake quantization read: bfloat16 as it is, others as float32."""
    return x if x.dtype is torch.bfloat16 else x.float()


OPERATORS = Operators(
    fake_quantize,
    fake_quantize_and_save,
    fake_quantize_backward,
    fake_quantize_backward_from_saved,
    clip_and_round,
    clip_and_round_backward,
    look_up,
    look_up_backward,
)
