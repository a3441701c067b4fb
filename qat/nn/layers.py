"""Layers that own quantizers.

`quantized(layer, ...)` re-classes the user's own module object: its parameters, hooks and state_dict names stay what they
were, and only `weight_quantizer` (and, without a graph, `input_quantizer`) is added. A new layer type is one class here
and one line in `LAYERS`.
"""

from __future__ import annotations

from typing import Protocol, cast

import torch.nn.functional as F
from torch import Tensor, nn

from qat.kernels import byte_encoding, saving_as_codes
from qat.quantizers import Quantizer


class QuantizedLayer(Protocol):
    """A layer with a quantized weight [out, in, ...] and, where no graph could be captured, a quantized input."""

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
        x, weight = _maybe(self.input_quantizer, x), _maybe(self.weight_quantizer, self.weight)
        with saving_as_codes(x, byte_encoding(x)):
            return self._conv_forward(x, weight, self.bias)


class Conv2d(nn.Conv2d):
    """`nn.Conv2d` whose weight is fake-quantized once per forward."""

    weight_quantizer: Quantizer | None
    input_quantizer: Quantizer | None

    def forward(self, x: Tensor) -> Tensor:
        """x: [N, C, H, W] or [C, H, W]."""
        x, weight = _maybe(self.input_quantizer, x), _maybe(self.weight_quantizer, self.weight)
        with saving_as_codes(x, byte_encoding(x)):
            return self._conv_forward(x, weight, self.bias)


class Linear(nn.Linear):
    """`nn.Linear` whose weight is fake-quantized once per forward."""

    weight_quantizer: Quantizer | None
    input_quantizer: Quantizer | None

    def forward(self, x: Tensor) -> Tensor:
        """x: [..., in_features]."""
        x, weight = _maybe(self.input_quantizer, x), _maybe(self.weight_quantizer, self.weight)
        with saving_as_codes(x, byte_encoding(x)):
            return F.linear(x, weight, self.bias)


LAYERS: dict[type[nn.Module], type[nn.Module]] = {nn.Conv1d: Conv1d, nn.Conv2d: Conv2d, nn.Linear: Linear}
"""Float layer -> layer that owns quantizers."""


def quantized(layer: nn.Module, weight: Quantizer | None, input: Quantizer | None = None) -> nn.Module:
    """Turn `layer`, in place, into its quantized class. Returns the same object."""
    layer.__class__ = LAYERS[type(layer)]
    layer.register_module("weight_quantizer", weight)
    layer.register_module("input_quantizer", input)
    return layer


def is_quantized(module: nn.Module) -> bool:
    """Whether `quantized` was called on this module."""
    return type(module) in LAYERS.values()


def as_quantized(module: nn.Module) -> QuantizedLayer:
    """The same module, typed."""
    return cast(QuantizedLayer, module)


def _maybe(quantizer: Quantizer | None, x: Tensor) -> Tensor:
    return x if quantizer is None else quantizer(x)
