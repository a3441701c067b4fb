"""Integer modules without weights: uint8 codes in, uint8 codes out. `layers.py` has those with weights."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qat.integer import arithmetic
from qat.integer.arithmetic import Encoding
from qat.integer.short_ratios import is_short
from qat.operations import AveragePool, MaxPool, Mean


class IntegerModule(nn.Module):
    """Base class: a module that computes with codes or makes them.

    Args:
        output: encoding of the result; None if it is float32.
    """

    def __init__(self, output: Encoding | None) -> None:
        super().__init__()
        self.output = output

    @property
    def makes_codes(self) -> bool:
        """Whether the result, or its first element, is uint8 codes."""
        return self.output is not None

    def extra_repr(self) -> str:
        return f"output={self.output}"


class Quantize(IntegerModule):
    """float32 -> codes."""

    output: Encoding

    def forward(self, x: Tensor) -> Tensor:
        if not x.is_floating_point():
            raise TypeError(f"a tensor to quantize is {x.dtype}: write x.float()")
        return arithmetic.quantize(x, self.output)


class Dequantize(IntegerModule):
    """codes -> float32."""

    def __init__(self, input: Encoding) -> None:
        super().__init__(None)
        self.input = input

    def forward(self, codes: Tensor) -> Tensor:
        return arithmetic.dequantize(codes, self.input)


class Requantize(IntegerModule):
    """codes -> codes in another encoding, for example 8 bits -> 4 bits in front of a layer."""

    output: Encoding

    def __init__(self, input: Encoding, output: Encoding) -> None:
        super().__init__(output)
        self.input = input

    def forward(self, codes: Tensor) -> Tensor:
        return arithmetic.requantize(codes, self.input, self.output)


class LookUp(IntegerModule):
    """codes -> codes by a table, uint8 (256,), that holds the levels or thresholds of a non-uniform quantizer."""

    output: Encoding
    table: Tensor

    def __init__(self, table: Tensor, output: Encoding) -> None:
        super().__init__(output)
        self.register_buffer("table", table.to(torch.uint8))

    def forward(self, codes: Tensor) -> Tensor:
        return arithmetic.look_up(codes, self.table)


class DynamicQuantize(IntegerModule):
    """float32 -> (codes, scale, zero_point), using the range of the tensor itself, or of each token of it."""

    makes_codes = True

    def __init__(self, per_token: bool = False) -> None:
        super().__init__(None)
        self.per_token = per_token

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return arithmetic.quantize_tokens(x) if self.per_token else arithmetic.dynamic_quantize(x)


class IntegerAdd(IntegerModule):
    """Codes of a + b; a, b and the sum each have their own encoding."""

    output: Encoding

    def __init__(self, a: Encoding, b: Encoding, output: Encoding) -> None:
        super().__init__(output)
        self.a, self.b = a, b

    @property
    def needs_fma(self) -> bool:
        """Whether a processor without fused multiply-adds may compute another code: a ratio of scales is too long."""
        ratios = (np.float32(x.scale) / np.float32(self.output.scale) for x in (self.a, self.b))
        return not all(map(is_short, ratios))

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return arithmetic.add(a, b, self.a, self.b, self.output)


class IntegerMultiply(IntegerModule):
    """Codes of a * b; a, b and the product each have their own encoding."""

    output: Encoding

    def __init__(self, a: Encoding, b: Encoding, output: Encoding) -> None:
        super().__init__(output)
        self.a, self.b = a, b

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return arithmetic.multiply(a, b, self.a, self.b, self.output)


class IntegerMatMul(IntegerModule):
    """Codes of the matrix product a @ b; a, b and the product each have their own encoding."""

    output: Encoding

    def __init__(self, a: Encoding, b: Encoding, output: Encoding) -> None:
        super().__init__(output)
        self.a, self.b = a, b

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return arithmetic.matmul(a, b, self.a, self.b, self.output)


class IntegerCat(IntegerModule):
    """Concatenation; every part is requantized to the encoding of the result.

    Args:
        inputs: encodings of the parts.
        output: encoding of the result.
        dim: the axis.
        stacked: whether `dim` is a new axis.
    """

    output: Encoding

    def __init__(self, inputs: list[Encoding], output: Encoding, dim: int, stacked: bool = False) -> None:
        super().__init__(output)
        self.inputs, self.dim, self.stacked = inputs, dim, stacked

    def forward(self, *parts: Tensor) -> Tensor:
        codes = [arithmetic.requantize(part, x, self.output) for part, x in zip(parts, self.inputs, strict=True)]
        return torch.stack(codes, self.dim) if self.stacked else torch.cat(codes, self.dim)


class IntegerMean(IntegerModule):
    """The mean, or the sum, of codes over whole axes. The mean of an image [N, C, H, W] over (2, 3) is a global average."""

    output: Encoding

    def __init__(self, input: Encoding, output: Encoding, mean: Mean) -> None:
        super().__init__(output)
        self.input, self.dims, self.keepdim, self.total = input, mean.dims, mean.keepdim, mean.total

    def axes(self, rank: int) -> tuple[int, ...]:
        """The axes of a tensor of this rank, counted from the front, in order."""
        return tuple(sorted(d % rank for d in self.dims))

    def is_global(self, rank: int) -> bool:
        """Whether this is the global average of a batch of images."""
        return rank == 4 and self.axes(rank) == (2, 3) and not self.total

    def forward(self, codes: Tensor) -> Tensor:
        if self.is_global(codes.ndim):
            mean = arithmetic.global_average(codes, self.input, self.output)
            return mean if self.keepdim else mean.flatten(-3)
        return arithmetic.mean(codes, self.input, self.output, self.axes(codes.ndim), self.keepdim, self.total)


class IntegerAveragePool(IntegerModule):
    """Averages over windows of [N, C, L] or [N, C, H, W]. A window that covers a whole image is a global average."""

    output: Encoding

    def __init__(self, input: Encoding, output: Encoding, pool: AveragePool) -> None:
        super().__init__(output)
        self.input = input
        self.kernel, self.stride, self.padding = pool.kernel, pool.stride, pool.padding
        self.count_include_pad = pool.count_include_pad

    def is_global(self, shape: torch.Size) -> bool:
        """Whether one window covers an input of this shape."""
        return len(self.kernel) == 2 and tuple(shape[-2:]) == self.kernel and self.padding == (0, 0)

    def forward(self, codes: Tensor) -> Tensor:
        if self.is_global(codes.shape):
            return arithmetic.global_average(codes, self.input, self.output)
        is_row = len(self.kernel) == 1
        images = codes.unsqueeze(-2) if is_row else codes
        kernel, stride = (1, *self.kernel)[-2:], (1, *self.stride)[-2:]
        average = arithmetic.window_average(
            images, self.input, self.output, kernel, stride, (0, *self.padding)[-2:], self.count_include_pad
        )
        return average.squeeze(-2) if is_row else average


class IntegerMaxPool(IntegerModule):
    """Maxima over windows of codes. Quantization preserves order, so it needs no arithmetic."""

    output: Encoding

    def __init__(self, output: Encoding, pool: MaxPool) -> None:
        super().__init__(output)
        self.kernel, self.stride, self.padding = pool.kernel, pool.stride, pool.padding
        self.dilation, self.ceil_mode = pool.dilation, pool.ceil_mode

    def forward(self, codes: Tensor) -> Tensor:
        pool = (F.max_pool1d, F.max_pool2d, F.max_pool3d)[len(self.kernel) - 1]
        pooled = pool(codes.float(), self.kernel, self.stride, self.padding, self.dilation, self.ceil_mode)
        return pooled.to(torch.uint8)


class IntegerPad(IntegerModule):
    """Zero padding on codes, with the zero-point. pad: as in torch.nn.functional.pad."""

    output: Encoding

    def __init__(self, output: Encoding, pad: tuple[int, ...]) -> None:
        super().__init__(output)
        self.pad = pad

    def forward(self, codes: Tensor) -> Tensor:
        return F.pad(codes, self.pad, value=self.output.zero_point)
