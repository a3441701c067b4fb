"""Layers with int8 weights: dequantize - convolution or linear - quantize, which a backend fuses into one integer kernel."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qat.export.pt2e.codes import dequantize, operations, quantize
from qat.integer.layers import IntegerConv, IntegerConvTranspose, IntegerLayer

NARROW = (-127, 127)
"""Bounds of weights: symmetric, as the kernels of XNNPACK and LiteRT want them."""


class Pt2eLayer(nn.Module):
    """A layer with int8 weights and a scale for each output channel; codes in, codes or (without an output grid) floats out.

    Weights of few bits are multiplied by the integer layer's `product_units`, and their scales divided: backends round the bias
    to whole units of one product, which is the unit in which the integer layer holds it.

    Args:
        layer: the integer layer.
        for_litert: whether weights are stored as the float values of their codes and quantized in the graph: litert-torch folds
            that itself. Otherwise they are stored as codes.
    """

    axis: ClassVar[int] = 0
    """The axis of the output channels in the weight."""
    weight: Tensor
    weight_scale: Tensor
    weight_zero_point: Tensor

    def __init__(self, layer: IntegerLayer, for_litert: bool = False) -> None:
        super().__init__()
        self.input, self.output, self.folded = layer.input, layer.output, not for_litert
        codes, scale = self.arranged(layer.product_units * layer.weight), layer.unit_scale
        if self.folded:
            self.register_buffer("weight", codes)
        else:
            shape = [-1 if axis == self.axis else 1 for axis in range(codes.ndim)]
            self.weight = nn.Parameter(codes.float() * scale.reshape(shape), requires_grad=False)
        self.register_buffer("weight_scale", scale.clone())
        self.register_buffer("weight_zero_point", torch.zeros(len(scale), dtype=torch.int64))
        bias = layer.bias.double() * layer.input.scale * layer.unit_scale.double()
        self.bias = nn.Parameter(bias.float(), requires_grad=False)

    @property
    def fuses(self) -> bool:
        """Whether a backend may make one integer kernel of it."""
        return self.output is not None or not self.folded

    def arranged(self, codes: Tensor) -> Tensor:
        """The weight codes [out, in, ...] in the order that `compute` wants."""
        return codes.clone()

    def compute(self, x: Tensor, weight: Tensor) -> Tensor:
        """The float layer. x, weight: dequantized."""
        raise TypeError(f"{type(self).__name__} must define compute")

    def forward(self, codes: Tensor) -> Tensor:
        scales = (self.weight_scale, self.weight_zero_point, self.axis, *NARROW, torch.int8)
        stored = self.weight if self.folded else operations.quantize_per_channel(self.weight, *scales)
        weight = operations.dequantize_per_channel(stored, *scales) if self.fuses else self._in_float(stored)
        real = self.compute(dequantize(codes, self.input), weight)
        return real if self.output is None else quantize(real, self.output)

    def _in_float(self, stored: Tensor) -> Tensor:
        """The weight of a layer that computes in float, dequantized as a matrix: ExecuTorch makes zeros of more axes."""
        outputs_first = stored.movedim(self.axis, 0)
        matrix = outputs_first.reshape(outputs_first.shape[0], -1)
        scales = (self.weight_scale, self.weight_zero_point, 0, *NARROW, torch.int8)
        real = operations.dequantize_per_channel(matrix, *scales).reshape(outputs_first.shape)
        return real.movedim(0, self.axis)


class Linear(Pt2eLayer):
    """A linear layer."""

    def compute(self, x: Tensor, weight: Tensor) -> Tensor:
        return F.linear(x, weight, self.bias)


class Convolution(Pt2eLayer):
    """A convolution. One whose two sides are padded differently is padded before it, on a grid of its own."""

    def __init__(self, layer: IntegerConv, for_litert: bool = False) -> None:
        super().__init__(layer, for_litert)
        self.stride, self.dilation, self.groups = layer.stride, layer.dilation, layer.groups
        self.operation: Callable[..., Tensor] = layer.operation
        before, after = layer.padding
        self.padding = before if before == after else (0,) * len(before)
        sides = [side for b, a in zip(reversed(before), reversed(after), strict=True) for side in (b, a)]
        self.pad = [] if before == after else sides

    def compute(self, x: Tensor, weight: Tensor) -> Tensor:
        if self.pad:
            x = dequantize(quantize(F.pad(x, self.pad), self.input), self.input)
        return self.operation(x, weight, self.bias, self.stride, self.padding, self.dilation, self.groups)


class TransposedConvolution(Pt2eLayer):
    """A transposed convolution; its weight is [in, out, ...], or [out, in / groups, ...] in several groups.

    No operation quantizes channels that two axes share: in several groups the weight is rearranged behind its dequantization.
    """

    def __init__(self, layer: IntegerConvTranspose, for_litert: bool = False) -> None:
        self.groups, self.spatial = layer.groups, tuple(range(2, layer.weight.ndim))
        super().__init__(layer, for_litert)
        self.stride, self.dilation = layer.insert, layer.dilation
        reach = [d * (k - 1) for d, k in zip(layer.dilation, layer.weight.shape[2:], strict=True)]
        before, after = layer.padding
        self.padding = [r - b for r, b in zip(reach, before, strict=True)]
        self.output_padding = [a - b for a, b in zip(after, before, strict=True)]
        self.operation: Callable[..., Tensor] = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)[
            len(reach) - 1
        ]

    @property
    def fuses(self) -> bool:
        return super().fuses and self.groups == 1

    @property
    def axis(self) -> int:  # type: ignore[override]
        """The axis of the output channels in the weight."""
        return 1 if self.groups == 1 else 0

    def arranged(self, codes: Tensor) -> Tensor:
        mirrored = codes.flip(self.spatial)
        return mirrored.transpose(0, 1).contiguous() if self.groups == 1 else mirrored

    def compute(self, x: Tensor, weight: Tensor) -> Tensor:
        if self.groups > 1:
            weight = weight.unflatten(0, (self.groups, -1)).transpose(1, 2).flatten(0, 1)
        return self.operation(
            x, weight, self.bias, self.stride, self.padding, self.output_padding, self.groups, self.dilation
        )
