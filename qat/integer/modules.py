"""Integer modules: uint8 codes in, uint8 codes out, int32 in between.

Each has `output`, the `Codes` of what it returns; None where it returns float32.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qat.integer import arithmetic
from qat.integer.arithmetic import Codes


class IntegerModule(nn.Module):
    """Knows how its result is stored."""

    def __init__(self, output: Codes | None) -> None:
        super().__init__()
        self.output = output

    @property
    def makes_codes(self) -> bool:
        """Whether its result, or the first part of it, is uint8 codes."""
        return self.output is not None

    def extra_repr(self) -> str:
        return f"output={self.output}"


class Quantize(IntegerModule):
    """float32 -> codes."""

    output: Codes

    def forward(self, x: Tensor) -> Tensor:
        return arithmetic.quantize(x, self.output)


class Dequantize(IntegerModule):
    """codes -> float32."""

    def __init__(self, input: Codes) -> None:
        super().__init__(None)
        self.input = input

    def forward(self, codes: Tensor) -> Tensor:
        return arithmetic.dequantize(codes, self.input)


class Requantize(IntegerModule):
    """codes -> codes of another grid, for example 8 bits -> 4 bits in front of a layer."""

    output: Codes

    def __init__(self, input: Codes, output: Codes) -> None:
        super().__init__(output)
        self.input = input

    def forward(self, codes: Tensor) -> Tensor:
        return arithmetic.requantize(codes, self.input, self.output)


class LookUp(IntegerModule):
    """codes -> codes by a table, uint8 (256,): the levels or thresholds of a non-uniform quantizer."""

    output: Codes
    table: Tensor

    def __init__(self, table: Tensor, output: Codes) -> None:
        super().__init__(output)
        self.register_buffer("table", table.to(torch.uint8))

    def forward(self, codes: Tensor) -> Tensor:
        return arithmetic.look_up(codes, self.table)


class IntegerLayer(IntegerModule):
    """A convolution or linear layer: int8 weight codes, int32 bias, one float32 scale per output channel.

    weight: int8, the shape of the float weight. weight_scale: float32 (out,). weight_bits: how many bits the codes need.
    bias: int32 (out,), in units of the accumulator, input.scale * weight_scale / steps: a product of codes counts `steps` of
    them. Products are summed exactly: in float32 on a CPU when no sum can reach 2**24, otherwise in float64.
    """

    weight: Tensor
    bias: Tensor
    weight_scale: Tensor

    def __init__(
        self,
        weight: Tensor,
        bias: Tensor,
        weight_scale: Tensor,
        weight_bits: int,
        input: Codes,
        output: Codes | None,
        steps: int = 1,
    ) -> None:
        super().__init__(output)
        self.input, self.weight_bits, self.steps = input, weight_bits, steps
        self.register_buffer("weight", weight.to(torch.int8))
        self.register_buffer("bias", bias.to(torch.int32))
        self.register_buffer("weight_scale", weight_scale.float())
        reach = max(input.highest - input.zero_point, input.zero_point - input.lowest)
        largest = int(weight.long().abs().flatten(1).sum(dim=1).max()) * reach
        self.fits_float32 = largest < 2**24

    @property
    def may_saturate(self) -> bool:
        """Whether two neighbouring products can leave 16 bits, in which x86 processors without VNNI would add them."""
        rows = self.steps * self.weight.long().abs().flatten(1)
        pairs = rows.topk(min(2, rows.shape[1]), dim=1).values.sum(dim=1)
        return int(pairs.max()) * self.input.highest > 2**15 - 1

    def products(self, x: Tensor, weight: Tensor) -> Tensor:
        """The float operation, without bias. x and weight hold whole numbers."""
        raise TypeError(f"{type(self).__name__} must define products")

    def accumulate(self, codes: Tensor, zero_point: Tensor | None = None) -> Tensor:
        """int32 accumulators, bias included. zero_point: of these codes, where it is not always that of the input."""
        dtype = torch.float32 if self.fits_float32 and not codes.is_cuda else torch.float64
        zero = self.input.zero_point if zero_point is None else zero_point
        # a power of two times the weights, not the sums: floats stay as exact, and it is no pass over the activations
        products = self.products(codes.to(dtype) - zero, self.steps * self.weight.to(dtype))
        return products.to(torch.int32) + self.per_channel(self.bias)

    @property
    def unit_scale(self) -> Tensor:
        """weight_scale / steps, exactly: what a unit of the accumulator is, of the input's scale; float32 (out,)."""
        return self.weight_scale / self.steps

    def forward(self, codes: Tensor) -> Tensor:
        accumulator = self.accumulate(codes)
        scale = self.per_channel(self.unit_scale)
        if self.output is None:
            return arithmetic.accumulator_to_float(accumulator, self.input.scale, scale)
        return arithmetic.accumulator_to_codes(accumulator, self.input.scale, scale, self.output)

    def per_channel(self, p: Tensor) -> Tensor:
        """(out,), as it broadcasts against accumulators."""
        return p


class IntegerConv(IntegerLayer):
    """Conv1d or Conv2d on codes; padding is the zero-point."""

    def __init__(self, *args: object, conv: nn.Conv1d | nn.Conv2d, **kwargs: object) -> None:
        super().__init__(*args, **kwargs)  # type: ignore[arg-type]
        self.stride, self.dilation, self.groups = conv.stride, conv.dilation, conv.groups
        self.padding = explicit_padding(conv)
        self.operation: Callable[..., Tensor] = F.conv1d if isinstance(conv, nn.Conv1d) else F.conv2d

    def products(self, x: Tensor, weight: Tensor) -> Tensor:
        before, after = self.padding
        if before != after:
            x = F.pad(x, [side for b, a in zip(reversed(before), reversed(after), strict=True) for side in (b, a)])
        padding = before if before == after else 0
        return self.operation(x, weight, None, self.stride, padding, self.dilation, self.groups)

    def per_channel(self, p: Tensor) -> Tensor:
        return p.reshape(-1, *[1] * (self.weight.dim() - 2))


class IntegerLinear(IntegerLayer):
    """Linear on codes. absorbed: whether a BatchNorm1d is part of it, which normalises the last of two axes."""

    def __init__(self, *args: object, absorbed: bool = False, **kwargs: object) -> None:
        super().__init__(*args, **kwargs)  # type: ignore[arg-type]
        self.absorbed = absorbed

    def products(self, x: Tensor, weight: Tensor) -> Tensor:
        if self.absorbed and x.ndim != 2:
            raise ValueError(
                f"the BatchNorm1d behind a linear layer normalises the second axis of {tuple(x.shape)}, which are not the "
                "layer's outputs, and has no integer form: write nn.LayerNorm, or a rule with weight: null for that layer."
            )
        return F.linear(x, weight)


class DynamicQuantize(IntegerModule):
    """float32 -> (codes, scale, zero_point) on the range of each tensor."""

    makes_codes = True

    def __init__(self) -> None:
        super().__init__(None)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return arithmetic.dynamic_quantize(x)


class DynamicLayer(IntegerModule):
    """A layer on what `DynamicQuantize` makes: float32(accumulator) * (scale * weight_scale) + bias, in this order.

    layer: int8 weight codes and their scales; its own bias is 0 and its input any uint8 code. bias: float32 (out,).
    """

    bias: Tensor

    def __init__(self, layer: IntegerLayer, bias: Tensor) -> None:
        super().__init__(None)
        self.layer = layer
        self.register_buffer("bias", bias.float())

    def forward(self, x: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        codes, scale, zero_point = x
        accumulator = self.layer.accumulate(codes, zero_point)
        multiplier = scale * self.layer.per_channel(self.layer.weight_scale)
        return accumulator.float() * multiplier + self.layer.per_channel(self.bias)


class IntegerAdd(IntegerModule):
    """Codes of a + b, each on its own grid."""

    output: Codes

    def __init__(self, a: Codes, b: Codes, output: Codes) -> None:
        super().__init__(output)
        self.a, self.b = a, b

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return arithmetic.add(a, b, self.a, self.b, self.output)


class IntegerCat(IntegerModule):
    """Concatenation; every part is requantized to the common grid."""

    output: Codes

    def __init__(self, inputs: list[Codes], output: Codes, dim: int) -> None:
        super().__init__(output)
        self.inputs, self.dim = inputs, dim

    def forward(self, parts: list[Tensor]) -> Tensor:
        codes = [arithmetic.requantize(part, x, self.output) for part, x in zip(parts, self.inputs, strict=True)]
        return torch.cat(codes, self.dim)


class IntegerGlobalAverage(IntegerModule):
    """[N, C, H, W] -> [N, C, 1, 1], or [N, C] without `keepdim`."""

    output: Codes

    def __init__(self, input: Codes, output: Codes, keepdim: bool = True) -> None:
        super().__init__(output)
        self.input, self.keepdim = input, keepdim

    def forward(self, codes: Tensor) -> Tensor:
        if codes.ndim != 4:
            raise ValueError(
                f"a mean of {tuple(codes.shape)} over two axes has no integer form, which only (N, C, H, W) has over (2, 3): "
                "reshape the tensor around it."
            )
        mean = arithmetic.global_average(codes, self.input, self.output)
        return mean if self.keepdim else mean.flatten(-3)


class IntegerAveragePool(IntegerModule):
    """AvgPool2d on codes. A window that covers the whole map is a global average."""

    output: Codes

    def __init__(self, input: Codes, output: Codes, pool: nn.AvgPool2d) -> None:
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
    """MaxPool2d on codes: order is kept by quantization, so it needs no arithmetic."""

    output: Codes

    def __init__(self, output: Codes, pool: nn.MaxPool2d) -> None:
        super().__init__(output)
        self.kernel, self.stride = _pair(pool.kernel_size), _pair(pool.stride)
        self.padding, self.dilation, self.ceil_mode = _pair(pool.padding), _pair(pool.dilation), pool.ceil_mode

    def forward(self, codes: Tensor) -> Tensor:
        pooled = F.max_pool2d(codes.float(), self.kernel, self.stride, self.padding, self.dilation, self.ceil_mode)
        return pooled.to(torch.uint8)


class IntegerPad(IntegerModule):
    """Zero padding on codes: pads with the zero-point. pad: as in torch.nn.functional.pad."""

    output: Codes

    def __init__(self, output: Codes, pad: tuple[int, ...]) -> None:
        super().__init__(output)
        self.pad = pad

    def forward(self, codes: Tensor) -> Tensor:
        return F.pad(codes, self.pad, value=self.output.zero_point)


class WeightOnlyLayer(nn.Module):
    """A layer whose weight is stored as codes and whose arithmetic is float32: weight-only and per-group quantization.

    weight: int8 codes, uint8 of affine grids. weight_scale: float32, one per channel or group, against `view`, the shape in
    which they broadcast.
    """

    weight: Tensor
    weight_scale: Tensor
    weight_zero_point: Tensor

    def __init__(
        self, layer: nn.Module, codes: Tensor, scale: Tensor, zero_point: Tensor, view: torch.Size, bits: int
    ) -> None:
        super().__init__()
        self.layer, self.view, self.weight_bits = layer, view, bits
        self.register_buffer("weight", codes.to(torch.int8 if int(codes.min()) < 0 else torch.uint8))
        self.register_buffer("weight_scale", scale.float())
        self.register_buffer("weight_zero_point", zero_point)

    def dequantized(self) -> Tensor:
        """The float weight, in the shape of the layer."""
        codes = self.weight.reshape(self.view).float()
        return ((codes - self.weight_zero_point) * self.weight_scale).reshape(self.weight.shape)

    def forward(self, x: Tensor) -> Tensor:
        parameters = {"weight": self.dequantized()}
        return torch.func.functional_call(self.layer, parameters, (x,))


def _pair(value: object) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else tuple(value)  # type: ignore[return-value,arg-type]


def explicit_padding(conv: nn.Conv1d | nn.Conv2d) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """(before, after) for every spatial axis; 'same' puts the odd one after, as torch does."""
    if isinstance(conv.padding, str):
        axes = len(conv.kernel_size)
        if conv.padding == "valid":
            return (0,) * axes, (0,) * axes
        total = [d * (k - 1) for d, k in zip(conv.dilation, conv.kernel_size, strict=True)]
        return tuple(t // 2 for t in total), tuple(t - t // 2 for t in total)
    return tuple(conv.padding), tuple(conv.padding)
