"""Layers that own quantizers.

`quantize_layer(layer, ...)` changes the class of the user's own module object: parameters, hooks and state_dict names stay,
and only `weight_quantizer` (and, if no graph was captured, `input_quantizer`) is added. A new layer type costs one class here
and one line in `LAYERS`.
"""

from __future__ import annotations

from typing import Protocol, cast

import torch.nn.functional as F
from torch import Tensor, nn

from qat.kernels import byte_encoding, saving_as_codes
from qat.quantizers import Quantizer


class QuantizedLayer(Protocol):
    """A layer with a quantized weight [out, in, ...] and, if no graph could be captured, a quantized input."""

    weight: Tensor
    bias: Tensor | None
    weight_quantizer: Quantizer | None
    input_quantizer: Quantizer | None


class Conv1d(nn.Conv1d):
    """`nn.Conv1d` whose weight is fake-quantized once per forward."""

    weight_quantizer: Quantizer | None
    input_quantizer: Quantizer | None

    def forward(self, x: Tensor) -> Tensor:
        """x: [N, C, L] or [C, L]."""
        x, weight = _quantize_if_given(self.input_quantizer, x), _quantize_if_given(self.weight_quantizer, self.weight)
        with saving_as_codes(x, byte_encoding(x)):
            return self._conv_forward(x, weight, self.bias)


class Conv2d(nn.Conv2d):
    """`nn.Conv2d` whose weight is fake-quantized once per forward."""

    weight_quantizer: Quantizer | None
    input_quantizer: Quantizer | None

    def forward(self, x: Tensor) -> Tensor:
        """x: [N, C, H, W] or [C, H, W]."""
        x, weight = _quantize_if_given(self.input_quantizer, x), _quantize_if_given(self.weight_quantizer, self.weight)
        with saving_as_codes(x, byte_encoding(x)):
            return self._conv_forward(x, weight, self.bias)


class Linear(nn.Linear):
    """`nn.Linear` whose weight is fake-quantized once per forward."""

    weight_quantizer: Quantizer | None
    input_quantizer: Quantizer | None

    def forward(self, x: Tensor) -> Tensor:
        """x: [..., in_features]."""
        x, weight = _quantize_if_given(self.input_quantizer, x), _quantize_if_given(self.weight_quantizer, self.weight)
        with saving_as_codes(x, byte_encoding(x)):
            return F.linear(x, weight, self.bias)


LAYERS: dict[type[nn.Module], type[nn.Module]] = {nn.Conv1d: Conv1d, nn.Conv2d: Conv2d, nn.Linear: Linear}
"""Float layer -> quantized layer."""


def quantize_layer(layer: nn.Module, weight: Quantizer | None, input: Quantizer | None = None) -> nn.Module:
    """Turn `layer` into a quantized layer, in place.

    Args:
        layer: an instance of a key of `LAYERS`, not of a subclass.
        weight: quantizer of the weight; None leaves it in float.
        input: quantizer of the input; None leaves it as it comes.

    Returns:
        `layer`.
    """
    layer.__class__ = LAYERS[type(layer)]
    layer.register_module("weight_quantizer", weight)
    layer.register_module("input_quantizer", input)
    return layer


def is_quantized(module: nn.Module) -> bool:
    """Whether `quantize_layer` was called on this module."""
    return type(module) in LAYERS.values()


def as_quantized(module: nn.Module) -> QuantizedLayer:
    """The same module, typed."""
    return cast(QuantizedLayer, module)


def _quantize_if_given(quantizer: Quantizer | None, x: Tensor) -> Tensor:
    return x if quantizer is None else quantizer(x)
