"""The functions that the autograd functions call, on a GPU: those of `cpu/functions.py`, with the same shapes.

Inputs may be float32, bfloat16 or float16, and results have the dtype of x or grad: no pass over memory converts them. Nothing
waits for the device.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from qat.kernels.layout import dense, in_layout_of
from qat.kernels.operators import Operators
from qat.kernels.triton import kernels

EXACT = {"enable_fp_fusion": False, "num_warps": 8}
"""No fused multiply-add: y is the same float as on the CPU."""


def _run(kernel: Any, x: Tensor, n_scales: int, *arguments: Any, **constants: Any) -> None:
    """Start a kernel on the blocks of x; `blocks` and `columns` stand before what is in `constants`."""
    columns, blocks, rows = _blocks(x, n_scales)
    with torch.cuda.device_of(x):
        kernel[(rows * blocks,)](*arguments, columns=columns, blocks=blocks, **constants, **EXACT)


def _blocks(x: Tensor, n_scales: int) -> tuple[int, int, int]:
    """(columns, blocks of a row, rows)."""
    columns = x.numel() // n_scales
    return columns, -(-columns // kernels.BLOCK), n_scales


def _sums(x: Tensor, n_scales: int, *shape: int) -> Tensor:
    """Room for the partial sums of every program."""
    _columns, blocks, rows = _blocks(x, n_scales)
    return torch.empty(*shape, rows, blocks, dtype=torch.float32, device=x.device)


def fake_quantize(x: Tensor, scale: Tensor, lo: float, hi: float) -> Tensor:
    """The quantized values y. Nothing is saved: the backward pass reads x again."""
    return _fake_quantize(x, scale, lo, hi, save=False)[0]


def fake_quantize_and_save(x: Tensor, scale: Tensor, lo: float, hi: float) -> tuple[Tensor, Tensor]:
    """(y, saved): `saved` is int8, one byte per element, for `fake_quantize_backward_from_saved`."""
    return _fake_quantize(x, scale, lo, hi, save=True)


def _fake_quantize(x: Tensor, scale: Tensor, lo: float, hi: float, save: bool) -> tuple[Tensor, Tensor]:
    x, n = dense(x), scale.numel()
    y, saved = torch.empty_like(x), torch.empty_like(x, dtype=torch.int8) if save else x
    arguments = (x, scale.contiguous(), y, saved, lo, hi)
    _run(kernels.fake_quantize_forward, x, n, *arguments, step=int(n > 1), SAVE=save)
    return y, saved


def fake_quantize_backward(grad: Tensor, x: Tensor, scale: Tensor, lo: float, hi: float) -> tuple[Tensor, Tensor]:
    """(dx, dscale); dscale has the shape of scale."""
    x, n = dense(x), scale.numel()
    dx, sums = torch.empty_like(x, dtype=grad.dtype), _sums(x, n)
    arguments = (in_layout_of(grad, x), x, scale.contiguous(), dx, sums, lo, hi)
    _run(kernels.fake_quantize_backward, x, n, *arguments, step=int(n > 1))
    return dx, sums.sum(dim=1).reshape(scale.shape)


def fake_quantize_backward_from_saved(
    grad: Tensor, saved: Tensor, scale: Tensor, lo: float, hi: float
) -> tuple[Tensor, Tensor]:
    """(dx, dscale) from the saved bytes. Only the shape of scale is used."""
    grad, n = in_layout_of(grad, saved), scale.numel()
    dx, sums = torch.empty_like(grad), _sums(grad, n)
    _run(kernels.fake_quantize_backward_from_saved, grad, n, grad, saved, dx, sums, lo, hi)
    return dx, sums.sum(dim=1).reshape(scale.shape)


def clip_and_round(x: Tensor, lo: Tensor, hi: Tensor, scale: Tensor) -> Tensor:
    """`round(clamp(x, lo, hi) / scale) * scale`."""
    x, n = dense(x), scale.numel()
    y = torch.empty_like(x)
    ranges = (lo.contiguous(), hi.contiguous(), scale.contiguous())
    _run(kernels.clip_and_round_forward, x, n, x, *ranges, y, step=int(n > 1))
    return y


def clip_and_round_backward(
    grad: Tensor, x: Tensor, y: Tensor, lo: Tensor, hi: Tensor, scale: Tensor, slopes: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(dx, below, above, inner): sums of grad where x <= lo, of grad where x >= hi, and of grad * y - dx * x in between; each
    has the shape of scale.
    """
    x, n = dense(x), scale.numel()
    dx, sums = torch.empty_like(x, dtype=grad.dtype), _sums(x, n, 3)
    tensors = (in_layout_of(grad, x), x, in_layout_of(y, x))
    ranges = (lo.contiguous(), hi.contiguous(), scale.contiguous())
    table = slopes.contiguous().to(x.device, non_blocking=True)
    arguments = (*tensors, *ranges, table, dx, sums)
    _run(kernels.clip_and_round_backward, x, n, *arguments, step=int(n > 1), points=slopes.shape[1])
    below, above, inner = sums.sum(dim=2).reshape(3, *scale.shape)
    return dx, below, above, inner


def look_up(x: Tensor, scale: Tensor, lo: float, hi: float, values: Tensor) -> tuple[Tensor, Tensor]:
    """(values[codes], codes), with codes = `round(clamp(x / scale, lo, hi)) - lo`, uint8."""
    x = dense(x)
    y, codes = torch.empty_like(x), torch.empty_like(x, dtype=torch.uint8)
    _run(kernels.look_up_forward, x, 1, x, scale.contiguous(), values.contiguous(), y, codes, float(lo), float(hi))
    return y, codes


def look_up_backward(grad: Tensor, codes: Tensor, slopes: Tensor) -> tuple[Tensor, Tensor]:
    """(dx, dvalues) of `look_up`."""
    grad, n = in_layout_of(grad, codes), len(slopes)
    dx, (_columns, blocks, _rows) = torch.empty_like(grad), _blocks(grad, 1)
    sums = torch.empty(blocks, n, dtype=torch.float32, device=grad.device)
    _run(kernels.look_up_backward, grad, 1, grad, codes, slopes.contiguous(), dx, sums, n=n)
    return dx, sums.sum(dim=0)


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
