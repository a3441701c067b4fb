"""Operations without weights on int8 codes: dequantize - float operation - quantize."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qat.export.pt2e.codes import SHIFT, dequantize, quantize
from qat.integer import Encoding
from qat.integer import modules as integer

ONE = Encoding(2.0**-6, SHIFT, SHIFT, SHIFT + 64)
"""The grid of a constant 1.0, whose code is the highest."""
WHOLE = Encoding(ONE.scale, ONE.zero_point)
"""The same without bounds."""


class Quantize(nn.Module):
    """Numbers of any type -> codes."""

    def __init__(self, output: Encoding) -> None:
        super().__init__()
        self.output = output

    def forward(self, x: Tensor) -> Tensor:
        return quantize(x if x.dtype == torch.float32 else x.float(), self.output)


class Dequantize(nn.Module):
    """codes -> float32."""

    def __init__(self, input: Encoding) -> None:
        super().__init__()
        self.input = input

    def forward(self, codes: Tensor) -> Tensor:
        return dequantize(codes, self.input)


class OfOne(nn.Module):
    """Codes of a function of one tensor.

    Args:
        module: an integer module with an `input` and an `output` encoding, or an output that is also that of its input.
    """

    def __init__(self, module: integer.IntegerModule) -> None:
        super().__init__()
        assert module.output is not None
        self.input, self.output = getattr(module, "input", module.output), module.output

    def compute(self, x: Tensor) -> Tensor:
        """The float operation."""
        return x

    def forward(self, codes: Tensor) -> Tensor:
        return quantize(self.compute(dequantize(codes, self.input)), self.output)


class TimesOne(nn.Module):
    """A product with 1, whose result can be quantized to another grid than that of its input.

    XNNPACK, in ExecuTorch and LiteRT, multiplies exactly, but requantizes alone with a ratio that it rounds to a 256th, which
    moves some per cent of the codes by one step; and litert-torch takes two quantizations in a row for one, and loses what the
    first saturates: a ReLU.
    """

    one: Tensor

    def __init__(self, for_litert: bool = False) -> None:
        super().__init__()
        self.folded = not for_litert  # litert-torch wants to quantize constants itself
        code = torch.full((1,), ONE.highest - SHIFT, dtype=torch.int8)
        self.register_buffer("one", code if self.folded else dequantize(code, ONE))

    def forward(self, x: Tensor) -> Tensor:
        one = self.one.reshape([1] * x.dim())
        return x * dequantize(one if self.folded else quantize(one, WHOLE), ONE)


class Requantize(OfOne):
    """The same values on another grid."""

    def __init__(self, module: integer.IntegerModule, for_litert: bool = False) -> None:
        super().__init__(module)
        self.times_one = TimesOne(for_litert)

    def compute(self, x: Tensor) -> Tensor:
        return self.times_one(x)


class Mean(OfOne):
    """The mean, or the sum, over whole axes; that of an image as a pooling, which backends know."""

    def __init__(self, module: integer.IntegerMean) -> None:
        super().__init__(module)
        self.module = module

    def forward(self, codes: Tensor) -> Tensor:
        x = dequantize(codes, self.input)
        if not self.module.is_global(x.ndim):
            operation = torch.sum if self.module.total else torch.mean
            return quantize(operation(x, self.module.axes(x.ndim), self.module.keepdim), self.output)
        pooled = quantize(F.adaptive_avg_pool2d(x, 1), self.output)
        if self.module.keepdim:
            return pooled
        return quantize(dequantize(pooled, self.output).flatten(-3), self.output)


class AveragePool(OfOne):
    """Averages over windows."""

    def __init__(self, module: integer.IntegerAveragePool) -> None:
        super().__init__(module)
        self.module = module

    def compute(self, x: Tensor) -> Tensor:
        pool = self.module
        operation = (F.avg_pool1d, F.avg_pool2d)[len(pool.kernel) - 1]
        return operation(x, pool.kernel, pool.stride, pool.padding, False, pool.count_include_pad)


class MaxPool(OfOne):
    """Maxima over windows."""

    def __init__(self, module: integer.IntegerMaxPool) -> None:
        super().__init__(module)
        self.module = module

    def compute(self, x: Tensor) -> Tensor:
        pool = self.module
        operation = (F.max_pool1d, F.max_pool2d, F.max_pool3d)[len(pool.kernel) - 1]
        pooled: Tensor = operation(x, pool.kernel, pool.stride, pool.padding, pool.dilation, pool.ceil_mode)
        return pooled


class Pad(OfOne):
    """Zeros around the tensor."""

    def __init__(self, module: integer.IntegerPad) -> None:
        super().__init__(module)
        self.pad = module.pad

    def compute(self, x: Tensor) -> Tensor:
        return F.pad(x, self.pad)


class OfTwo(nn.Module):
    """Codes of a + b, a * b or a @ b."""

    def __init__(self, module: integer.IntegerAdd | integer.IntegerMultiply | integer.IntegerMatMul) -> None:
        super().__init__()
        self.a, self.b, self.output = module.a, module.b, module.output
        self.operation = OPERATIONS[type(module)]

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return quantize(self.operation(dequantize(a, self.a), dequantize(b, self.b)), self.output)


OPERATIONS: dict[type[nn.Module], Callable[[Tensor, Tensor], Tensor]] = {
    integer.IntegerAdd: torch.add,
    integer.IntegerMultiply: torch.mul,
    integer.IntegerMatMul: torch.matmul,
}


class Cat(nn.Module):
    """Concatenation: every part is quantized to the grid of the result first, because kernels know one grid alone."""

    def __init__(self, module: integer.IntegerCat, for_litert: bool = False) -> None:
        super().__init__()
        self.module, self.output, self.times_one = module, module.output, TimesOne(for_litert)

    def forward(self, *parts: Tensor) -> Tensor:
        on_grid = [
            dequantize(
                part if x == self.output else quantize(self.times_one(dequantize(part, x)), self.output), self.output
            )
            for part, x in zip(parts, self.module.inputs, strict=True)
        ]
        join = torch.stack if self.module.stacked else torch.cat
        return quantize(join(on_grid, self.module.dim), self.output)


class LookUp(nn.Module):
    """codes -> codes by a table of 256, the same integers as those of the integer model."""

    table: Tensor

    def __init__(self, module: integer.LookUp) -> None:
        super().__init__()
        self.register_buffer("table", (module.table.to(torch.int16) - SHIFT).to(torch.int8))

    def forward(self, codes: Tensor) -> Tensor:
        return self.table[codes.long() + SHIFT]


class FloatLookUp(nn.Module):
    """The same for litert-torch, which can index with whole floats alone, and not with codes: an exact detour through floats.

    The floats are one row, because its change to channels-last order knows a reshape, and not an index.

    Args:
        module: the integer module.
        input: how its codes are read.
    """

    values: Tensor

    def __init__(self, module: integer.LookUp, input: Encoding) -> None:
        super().__init__()
        self.input, self.output = input, Encoding(module.output.scale, module.output.zero_point)
        self.register_buffer("values", dequantize((module.table.to(torch.int16) - SHIFT).to(torch.int8), self.output))

    def forward(self, codes: Tensor) -> Tensor:
        place = dequantize(codes, self.input).reshape(-1) * (1 / self.input.scale) + (self.input.zero_point + 0.5)
        return quantize(self.values[place.long()].reshape(codes.shape), self.output)
