"""Convolutions and linear layers on codes and on dynamic inputs. `weight_only.py` has those that compute in float."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qat.integer import arithmetic
from qat.integer.arithmetic import Encoding
from qat.integer.modules import IntegerModule
from qat.nn import Convolution, explicit_padding, transposed_padding


class IntegerLayer(IntegerModule):
    """A convolution or linear layer: int8 weight codes, int32 bias, one float32 scale per output channel.

    One unit of the accumulator is worth `input.scale * weight_scale / product_units`. Products are summed exactly: in
    float32 on a CPU if no sum can reach 2**24, otherwise in float64.

    Args:
        weight: whole numbers in the shape of the float weight; stored as int8.
        bias: whole numbers (out,), in units of the accumulator; stored as int32.
        weight_scale: (out,); stored as float32.
        weight_bits: how many bits the weight codes need.
        input: encoding of the input.
        output: encoding of the output; None if the layer returns float32.
        product_units: how many units of the accumulator one product of codes is.
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
        input: Encoding,
        output: Encoding | None,
        product_units: int = 1,
    ) -> None:
        super().__init__(output)
        self.input, self.weight_bits, self.product_units = input, weight_bits, product_units
        self.register_buffer("weight", weight.to(torch.int8))
        self.register_buffer("bias", bias.to(torch.int32))
        self.register_buffer("weight_scale", weight_scale.float())
        reach = max(input.highest - input.zero_point, input.zero_point - input.lowest)
        largest = int(weight.long().abs().flatten(1).sum(dim=1).max()) * reach
        self.fits_float32 = largest < 2**24

    @property
    def may_saturate(self) -> bool:
        """Whether two neighbouring products can exceed 16 bits, in which x86 processors without VNNI add them."""
        rows = self.product_units * self.weight.long().abs().flatten(1)
        pairs = rows.topk(min(2, rows.shape[1]), dim=1).values.sum(dim=1)
        return int(pairs.max()) * self.input.highest > 2**15 - 1

    def products(self, x: Tensor, weight: Tensor) -> Tensor:
        """The convolution or matrix product, without bias. x and weight hold whole numbers."""
        raise TypeError(f"{type(self).__name__} must define products")

    def accumulate(self, codes: Tensor, zero_point: Tensor | None = None) -> Tensor:
        """The int32 accumulators, bias included. zero_point: that of these codes; by default that of `input`."""
        dtype = torch.float32 if self.fits_float32 and not codes.is_cuda else torch.float64
        zero = self.input.zero_point if zero_point is None else zero_point
        # Scale the weights, not the sums: a power of two keeps floats exact, and this needs no pass over the activations.
        products = self.products(codes.to(dtype) - zero, self.product_units * self.weight.to(dtype))
        return products.to(torch.int32) + self.per_channel(self.bias)

    @property
    def unit_scale(self) -> Tensor:
        """One unit of the accumulator, divided by the input's scale: weight_scale / product_units, exactly; float32 (out,)."""
        return self.weight_scale / self.product_units

    def forward(self, codes: Tensor) -> Tensor:
        accumulator = self.accumulate(codes)
        scale = self.per_channel(self.unit_scale)
        if self.output is None:
            return arithmetic.accumulator_to_float(accumulator, self.input.scale, scale)
        return arithmetic.accumulator_to_codes(accumulator, self.input.scale, scale, self.output)

    def per_channel(self, p: Tensor) -> Tensor:
        """Reshape (out,) so that it broadcasts against accumulators."""
        return p


class IntegerConv(IntegerLayer):
    """Conv1d, Conv2d or Conv3d on codes; pads with the zero-point."""

    def __init__(self, *args: object, conv: Convolution, **kwargs: object) -> None:
        super().__init__(*args, **kwargs)  # type: ignore[arg-type]
        self.stride, self.dilation, self.groups = conv.stride, conv.dilation, conv.groups
        self.padding = explicit_padding(conv)
        self.operation: Callable[..., Tensor] = (F.conv1d, F.conv2d, F.conv3d)[len(conv.kernel_size) - 1]

    def products(self, x: Tensor, weight: Tensor) -> Tensor:
        before, after = self.padding
        if before != after:
            x = F.pad(x, [side for b, a in zip(reversed(before), reversed(after), strict=True) for side in (b, a)])
        padding = before if before == after else 0
        return self.operation(x, weight, None, self.stride, padding, self.dilation, self.groups)

    def per_channel(self, p: Tensor) -> Tensor:
        return p.reshape(-1, *[1] * (self.weight.dim() - 2))


class IntegerConvTranspose(IntegerConv):
    """A transposed convolution on codes: zeros between the codes, then a convolution with the mirrored kernel.

    Args:
        weight: whole numbers [out, in / groups, ...]; mirrored here.
    """

    def __init__(
        self, weight: Tensor, *args: object, conv: nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d
    ) -> None:
        axes = len(conv.kernel_size)
        super().__init__(weight.flip(tuple(range(2, 2 + axes))), *args, conv=conv)
        self.insert, self.stride = tuple(conv.stride), (1,) * axes
        self.padding = transposed_padding(conv)

    def accumulate(self, codes: Tensor, zero_point: Tensor | None = None) -> Tensor:
        return super().accumulate(self.with_zeros(codes), zero_point)

    def with_zeros(self, codes: Tensor) -> Tensor:
        """The codes with `stride - 1` zeros (the zero-point) between two neighbours on every spatial axis."""
        axes = len(self.insert)
        sizes = [(size - 1) * step + 1 for size, step in zip(codes.shape[-axes:], self.insert, strict=True)]
        spread = codes.new_full((*codes.shape[:-axes], *sizes), self.input.zero_point)
        every_step: tuple[Any, ...] = tuple(slice(None, None, step) for step in self.insert)
        spread[(..., *every_step)] = codes
        return spread


class IntegerLinear(IntegerLayer):
    """Linear on codes.

    Args:
        absorbed: whether a BatchNorm1d has been absorbed, so that inputs must have two axes.
    """

    def __init__(self, *args: object, absorbed: bool = False, **kwargs: object) -> None:
        super().__init__(*args, **kwargs)  # type: ignore[arg-type]
        self.absorbed = absorbed

    def products(self, x: Tensor, weight: Tensor) -> Tensor:
        if self.absorbed and x.ndim != 2:
            raise ValueError(
                f"the BatchNorm1d after a linear layer normalises the second axis of {tuple(x.shape)}, which is not the axis "
                "of the layer's outputs, so it has no integer form: write nn.LayerNorm, or a rule with weight: null for that "
                "layer."
            )
        return F.linear(x, weight)


class DynamicLayer(IntegerModule):
    """A layer on the output of `DynamicQuantize`: float32(accumulator) * (scale * weight_scale) + bias, in this order.

    With a scale per token: (float32(accumulator) * weight_scale) * scale + bias. ONNX Runtime would fuse the other order as if
    the tensor had one scale.

    Args:
        layer: int8 weight codes and their scales, with a bias of 0; takes any uint8 code.
        bias: (out,); stored as float32.
        per_token: whether each token has a scale.
    """

    bias: Tensor

    def __init__(self, layer: IntegerLayer, bias: Tensor, per_token: bool = False) -> None:
        super().__init__(None)
        self.layer, self.per_token = layer, per_token
        self.register_buffer("bias", bias.float())

    def forward(self, x: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        codes, scale, zero_point = x
        accumulator = self.layer.accumulate(codes, zero_point)
        weight_scale, bias = self.layer.per_channel(self.layer.weight_scale), self.layer.per_channel(self.bias)
        if self.per_token:
            return accumulator.float() * weight_scale * scale + bias
        return accumulator.float() * (scale * weight_scale) + bias
