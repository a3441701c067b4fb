"""Integer modules without weights: uint8 codes in, uint8 codes out. `layers.py` has those with weights."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qat.integer import arithmetic
from qat.integer.arithmetic import Encoding


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
    """float32 -> (codes, scale, zero_point), using the range of the tensor itself."""

    makes_codes = True

    def __init__(self) -> None:
        super().__init__(None)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return arithmetic.dynamic_quantize(x)


class IntegerAdd(IntegerModule):
    """Codes of a + b; a, b and the sum each have their own encoding."""

    output: Encoding

    def __init__(self, a: Encoding, b: Encoding, output: Encoding) -> None:
        super().__init__(output)
        self.a, self.b = a, b

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return arithmetic.add(a, b, self.a, self.b, self.output)


class IntegerCat(IntegerModule):
    """Concatenation; every part is requantized to the encoding of the result."""

    output: Encoding

    def __init__(self, inputs: list[Encoding], output: Encoding, dim: int) -> None:
        super().__init__(output)
        self.inputs, self.dim = inputs, dim

    def forward(self, parts: list[Tensor]) -> Tensor:
        codes = [arithmetic.requantize(part, x, self.output) for part, x in zip(parts, self.inputs, strict=True)]
        return torch.cat(codes, self.dim)


class IntegerGlobalAverage(IntegerModule):
    """[N, C, H, W] -> [N, C, 1, 1], or [N, C] without `keepdim`."""

    output: Encoding

    def __init__(self, input: Encoding, output: Encoding, keepdim: bool = True) -> None:
        super().__init__(output)
        self.input, self.keepdim = input, keepdim

    def forward(self, codes: Tensor) -> Tensor:
        if codes.ndim != 4:
            raise ValueError(
                f"a mean of {tuple(codes.shape)} over two axes has no integer form, only one of (N, C, H, W) over (2, 3) has: "
                "reshape the tensor around it."
            )
        mean = arithmetic.global_average(codes, self.input, self.output)
        return mean if self.keepdim else mean.flatten(-3)


class IntegerAveragePool(IntegerModule):
    """AvgPool2d on codes. A window that covers the whole map is a global average."""

    output: Encoding

    def __init__(self, input: Encoding, output: Encoding, pool: nn.AvgPool2d) -> None:
        super().__init__(output)
        self.input = input
        self.kernel, self.padding = _pair(pool.kernel_size), _pair(pool.padding)
        self.stride = _pair(pool.stride)
        self.count_include_pad = pool.count_include_pad

    def is_global(self, shape: torch.Size) -> bool:
        """Whether one window covers an input of this shape."""
        return tuple(shape[-2:]) == self.kernel and self.padding == (0, 0)

    def forward(self, codes: Tensor) -> Tensor:
        if self.is_global(codes.shape):
            return arithmetic.global_average(codes, self.input, self.output)
        return arithmetic.window_average(
            codes, self.input, self.output, self.kernel, self.stride, self.padding, self.count_include_pad
        )


class IntegerMaxPool(IntegerModule):
    """MaxPool2d on codes. Quantization preserves order, so it needs no arithmetic."""

    output: Encoding

    def __init__(self, output: Encoding, pool: nn.MaxPool2d) -> None:
        super().__init__(output)
        self.kernel, self.stride = _pair(pool.kernel_size), _pair(pool.stride)
        self.padding, self.dilation, self.ceil_mode = _pair(pool.padding), _pair(pool.dilation), pool.ceil_mode

    def forward(self, codes: Tensor) -> Tensor:
        pooled = F.max_pool2d(codes.float(), self.kernel, self.stride, self.padding, self.dilation, self.ceil_mode)
        return pooled.to(torch.uint8)


class IntegerPad(IntegerModule):
    """Zero padding on codes, with the zero-point. pad: as in torch.nn.functional.pad."""

    output: Encoding

    def __init__(self, output: Encoding, pad: tuple[int, ...]) -> None:
        super().__init__(output)
        self.pad = pad

    def forward(self, codes: Tensor) -> Tensor:
        return F.pad(codes, self.pad, value=self.output.zero_point)


def _pair(value: object) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else tuple(value)  # type: ignore[return-value,arg-type]
