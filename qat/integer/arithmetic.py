"""The definition of the artefact: what an integer runtime computes on uint8 codes, operation by operation.

Every formula is a fixed sequence of float32 operations on exact integers, chosen so that ONNX Runtime's fused int8 kernels
give the same code for every input (`docs/integer_arithmetic.md` has the measurements). Rounding is half to even.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from qat.grid import Grid
from qat.quantizers import Quantizer
from qat.quantizers.dynamic import token_scale
from qat.spec import QParams, QuantSpec

DYNAMIC = QuantSpec(Grid(8, signed=False), symmetric=False)
"""The spec of an activation that is quantized on its own range, tensor by tensor."""


@dataclass(frozen=True)
class Encoding:
    """How a stored activation is read: real value = (code - zero_point) * scale.

    Attributes:
        scale: a float32 number.
        zero_point: the code of 0.0; 2**(bits - 1) for a signed symmetric grid.
        lowest: smallest code in use, at least 0.
        highest: largest code in use, at most 255.
    """

    scale: float
    zero_point: int
    lowest: int = 0
    highest: int = 255

    @classmethod
    def of_quantizer(cls, quantizer: Quantizer) -> Encoding:
        """The encoding of an activation quantizer's codes.

        Raises:
            ValueError: the quantizer is not per tensor, or its scale is not finite.
        """
        if quantizer.n_qparams != 1:
            raise ValueError(
                f"activation {quantizer.label!r} has {quantizer.n_qparams} scales: write granularity: per_tensor."
            )
        if not bool(torch.isfinite(quantizer.qparams().scale).all()):
            raise ValueError(
                f"the scale of {quantizer.label!r} is not finite: its training diverged, lower the learning rate."
            )
        return cls.of_grid(quantizer.spec.grid, quantizer.qparams())

    @classmethod
    def of_grid(cls, grid: Grid, qparams: QParams) -> Encoding:
        """The encoding of a grid's codes with one scale and zero-point."""
        scale, zero_point = qparams
        shift = 2 ** (grid.bits - 1) if grid.signed else 0
        return cls(float(scale.item()), int(zero_point.item()) + shift, grid.qmin + shift, grid.qmax + shift)

    def after_relu(self, ceiling: float | None = None) -> Encoding:
        """The encoding after max(x, 0) and, with a `ceiling`, min(x, ceiling): only the bounds change."""
        highest = self.highest
        if ceiling is not None:
            steps = torch.round(torch.tensor(ceiling) / torch.tensor(self.scale))
            highest = min(highest, self.zero_point + int(steps))
        return Encoding(self.scale, self.zero_point, max(self.lowest, self.zero_point), highest)

    def clip(self, rounded: Tensor) -> Tensor:
        """Clamp whole numbers held in float to the bounds, as uint8 codes."""
        return rounded.clamp(self.lowest, self.highest).to(torch.uint8)


def _f32(value: float) -> Tensor:
    return torch.tensor(value, dtype=torch.float32)


def quantize(x: Tensor, y: Encoding) -> Tensor:
    """float32 -> codes, ONNX QuantizeLinear: rint(x / scale) + zero_point."""
    return y.clip(torch.round(x.float() / y.scale) + y.zero_point)


def dynamic_quantize(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """float32 -> (uint8 codes, scale [], zero_point []), using the range of x: ONNX DynamicQuantizeLinear."""
    lo, hi = torch.aminmax(x.float()) if x.numel() else torch.zeros(2, dtype=torch.float32, device=x.device)
    scale, zero_point = (p.reshape(()) for p in DYNAMIC.qparams(lo[None], hi[None]))
    codes = (torch.round(x.float() / scale) + zero_point).clamp(DYNAMIC.grid.qmin, DYNAMIC.grid.qmax)
    return codes.to(torch.uint8), scale, zero_point


def quantize_tokens(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """float32 -> (uint8 codes, scale [..., 1], zero_point [] = 128): rint(x / scale) + 128, scale = max |x| / 127 per token."""
    scale = token_scale(x)
    codes = (torch.round(x.float() / scale) + 128).clamp(1, 255)
    return codes.to(torch.uint8), scale, torch.full((), 128.0, dtype=torch.float32, device=x.device)


def dequantize(codes: Tensor, x: Encoding) -> Tensor:
    """codes -> float32, ONNX DequantizeLinear."""
    return (codes.float() - x.zero_point) * x.scale


def requantize(codes: Tensor, x: Encoding, y: Encoding) -> Tensor:
    """codes in encoding x -> codes in encoding y: quantize(dequantize(codes))."""
    return quantize(dequantize(codes, x), y)


def look_up(codes: Tensor, table: Tensor) -> Tensor:
    """codes -> codes: table[code], table: uint8 (256,)."""
    return table.to(codes.device)[codes.long()]


def accumulator_to_codes(accumulator: Tensor, x_scale: float, weight_scale: Tensor, y: Encoding) -> Tensor:
    """int32 -> codes: rint(float32(accumulator) * ((x_scale * weight_scale) / y.scale)) + zero_point, in this order.

    weight_scale must broadcast against the accumulator: one multiplier per output channel.
    """
    multiplier = (_f32(x_scale).to(weight_scale.device) * weight_scale) / _f32(y.scale).to(weight_scale.device)
    return y.clip(torch.round(accumulator.float() * multiplier) + y.zero_point)


def accumulator_to_float(accumulator: Tensor, x_scale: float, weight_scale: Tensor) -> Tensor:
    """int32 -> float32: float32(accumulator) * (x_scale * weight_scale)."""
    return accumulator.float() * (_f32(x_scale).to(weight_scale.device) * weight_scale)


def add(a: Tensor, b: Tensor, a_encoding: Encoding, b_encoding: Encoding, y: Encoding) -> Tensor:
    """Codes of a + b: rint(a * ra + (b * rb + c)), where c gathers the zero-points.

    ra = a.scale / y.scale, rb = b.scale / y.scale, c = y.zero_point - (ra * a.zero_point + rb * b.zero_point). Products are
    exact in float32 where `convert` could choose such scales (`short_ratios`). Elsewhere they are rounded together with their
    sums, as processors with fused multiply-adds do; that is computed in float64.
    """
    ratio_a, ratio_b = _f32(a_encoding.scale) / _f32(y.scale), _f32(b_encoding.scale) / _f32(y.scale)
    shift = (ratio_a.double() * a_encoding.zero_point + (ratio_b * b_encoding.zero_point).double()).float()
    fixed = (y.zero_point - shift.double()).float()
    table = ratio_table(ratio_b, fixed).to(b.device)[b.long()]
    return y.clip(torch.round((a.double() * ratio_a.item() + table.double()).float()))


def multiply(a: Tensor, b: Tensor, a_encoding: Encoding, b_encoding: Encoding, y: Encoding) -> Tensor:
    """Codes of a * b: rint(float32(product) * ((a.scale * b.scale) / y.scale) + zero_point), in this order."""
    product = (a.int() - a_encoding.zero_point) * (b.int() - b_encoding.zero_point)
    multiplier = (_f32(a_encoding.scale) * _f32(b_encoding.scale)) / _f32(y.scale)
    return y.clip(torch.round(product.float() * multiplier.item() + y.zero_point))


def matmul(a: Tensor, b: Tensor, a_encoding: Encoding, b_encoding: Encoding, y: Encoding) -> Tensor:
    """Codes of a @ b: the exact int32 sums of products, then as in `accumulator_to_codes`."""
    exact = torch.float32 if a.shape[-1] * 255 * 255 < 2**24 and not a.is_cuda else torch.float64
    sums = (a.to(exact) - a_encoding.zero_point) @ (b.to(exact) - b_encoding.zero_point)
    return accumulator_to_codes(sums, a_encoding.scale, _f32(b_encoding.scale).to(sums.device), y)


def mean(codes: Tensor, x: Encoding, y: Encoding, axes: tuple[int, ...], keepdim: bool, total: bool = False) -> Tensor:
    """Codes of the mean over `axes`: quantize(float32(sum) * (x.scale / count)), the sum exact in int32.

    Args:
        codes: any shape.
        x: encoding of `codes`.
        y: encoding of the result.
        axes: axes to average over, counted from the front.
        keepdim: whether they stay, with size 1.
        total: the sum instead of the mean: the count is 1.
    """
    count = math.prod(codes.shape[a] for a in axes)
    sums = codes.sum(dim=axes, keepdim=keepdim, dtype=torch.int32) - x.zero_point * count
    return quantize(sums.float() * (_f32(x.scale) / (1 if total else count)).item(), y)


def ratio_table(ratio: Tensor, fixed: Tensor) -> Tensor:
    """fma(code, ratio, fixed) for the codes 0..255: float32 (256,)."""
    return (torch.arange(256, dtype=torch.float64) * ratio.double() + fixed.double()).float()


def global_average(codes: Tensor, x: Encoding, y: Encoding) -> Tensor:
    """Codes [N, C, H, W] -> codes [N, C, 1, 1]: rint(float32(sum) * (x.scale / (y.scale * H*W))) + zero_point."""
    elements = codes.shape[-1] * codes.shape[-2]
    total = codes.sum(dim=(-2, -1), keepdim=True, dtype=torch.int32) - x.zero_point * elements
    multiplier = _f32(x.scale) / (_f32(y.scale) * elements)
    return y.clip(torch.round(total.float() * multiplier.item()) + y.zero_point)


def window_average(
    codes: Tensor,
    x: Encoding,
    y: Encoding,
    kernel: tuple[int, ...],
    stride: tuple[int, ...],
    padding: tuple[int, ...],
    count_include_pad: bool,
) -> Tensor:
    """Codes of an average over windows: rint(sum / count / y.scale + zero_point), the sum in float32, row by row.

    Args:
        codes: [N, C, H, W] or [C, H, W].
        x: encoding of `codes`.
        y: encoding of the result.
        kernel: (height, width) of the window.
        stride: along (height, width).
        padding: zeros on each side along (height, width).
        count_include_pad: whether padded zeros count.
    """
    real = dequantize(codes, x)
    (kh, kw), (sh, sw), (ph, pw) = kernel, stride, padding
    height, width = (real.shape[-2] + 2 * ph - kh) // sh + 1, (real.shape[-1] + 2 * pw - kw) // sw + 1
    padded = torch.nn.functional.pad(real, (pw, pw, ph, ph))
    inside = torch.nn.functional.pad(real.new_ones(real.shape[-2:]), (pw, pw, ph, ph), value=float(count_include_pad))
    total = real.new_zeros((*real.shape[:-2], height, width))
    count = real.new_zeros((height, width))
    for i in range(kh):
        for j in range(kw):
            window = (..., slice(i, i + sh * (height - 1) + 1, sh), slice(j, j + sw * (width - 1) + 1, sw))
            total, count = total + padded[window], count + inside[window]
    return y.clip(torch.round(total / count / y.scale + y.zero_point))
