"""Layers that own quantizers.

A layer is what it computes, not what its class is called: a subclass of nn.Conv2d that leaves forward alone is a Conv2d, one
with a forward of its own is not. `quantize_layer(layer, ...)` changes the class of the user's own module object: parameters,
hooks and state_dict names stay, and only `weight_quantizer` (and, if no graph was captured, `input_quantizer`) is added. A new
layer type needs a class here and a line in `LAYERS`.
"""

from __future__ import annotations

from typing import Any, Protocol, cast

import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from qat.kernels import saving_as_codes
from qat.nn.hooked_weight import compute_hooked_weight
from qat.nn.rebuilt import with_class
from qat.quantizers import Quantizer


class QuantizedLayer(Protocol):
    """A layer with a quantized weight and, if no graph could be captured, a quantized input."""

    weight: Tensor
    """The weight that the layer computes with: the result of its parametrization, if it has one."""
    bias: Tensor | None
    weight_quantizer: Quantizer | None
    input_quantizer: Quantizer | None

    def compute(self, x: Tensor, weight: Tensor, *others: Any, **named: Any) -> Tensor:
        """What the float layer computes, with this weight."""


class _FakeQuantized:
    """The forward of a layer whose weight is fake-quantized once per forward."""

    weight: Tensor
    bias: Any
    weight_quantizer: Quantizer | None
    input_quantizer: Quantizer | None

    def forward(self, input: Tensor, *others: Any, **named: Any) -> Tensor:
        """Takes what the float layer takes; `others` may hold the `output_size` of a transposed convolution."""
        x, weight = (
            _quantize_if_given(self.input_quantizer, input),
            _quantize_if_given(self.weight_quantizer, self.weight),
        )
        with saving_as_codes(x, weight):
            return self.compute(x, weight, *others, **named)

    def compute(self, x: Tensor, weight: Tensor) -> Tensor:
        """What the float layer computes, with this weight."""
        raise NotImplementedError


class _Convolution(_FakeQuantized):
    def compute(self, x: Tensor, weight: Tensor) -> Tensor:
        result: Tensor = self._conv_forward(x, weight, self.bias)  # type: ignore[attr-defined]
        return result


class _ConvTransposed(_FakeQuantized):
    def compute(self, x: Tensor, weight: Tensor, output_size: list[int] | None = None) -> Tensor:
        layer: Any = self
        axes = len(layer.kernel_size)
        output_padding = self._output_padding(  # type: ignore[attr-defined]
            x, output_size, layer.stride, layer.padding, layer.kernel_size, axes, layer.dilation
        )
        options = (layer.stride, layer.padding, output_padding, layer.groups, layer.dilation)
        function: Any = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)[axes - 1]
        result: Tensor = function(x, weight, self.bias, *options)
        return result


class Conv1d(_Convolution, nn.Conv1d):
    """`nn.Conv1d` whose weight is fake-quantized once per forward. x: [N, C, L] or [C, L]."""


class Conv2d(_Convolution, nn.Conv2d):
    """`nn.Conv2d` whose weight is fake-quantized once per forward. x: [N, C, H, W] or [C, H, W]."""


class Conv3d(_Convolution, nn.Conv3d):
    """`nn.Conv3d` whose weight is fake-quantized once per forward. x: [N, C, D, H, W] or [C, D, H, W]."""


class ConvTranspose1d(_ConvTransposed, nn.ConvTranspose1d):
    """`nn.ConvTranspose1d` whose weight is fake-quantized once per forward. x: [N, C, L] or [C, L]."""


class ConvTranspose2d(_ConvTransposed, nn.ConvTranspose2d):
    """`nn.ConvTranspose2d` whose weight is fake-quantized once per forward. x: [N, C, H, W] or [C, H, W]."""


class ConvTranspose3d(_ConvTransposed, nn.ConvTranspose3d):
    """`nn.ConvTranspose3d` whose weight is fake-quantized once per forward. x: [N, C, D, H, W] or [C, D, H, W]."""


class Linear(_FakeQuantized, nn.Linear):
    """`nn.Linear` whose weight is fake-quantized once per forward. x: [..., in_features]."""

    def compute(self, x: Tensor, weight: Tensor) -> Tensor:
        return F.linear(x, weight, self.bias)


class Embedding(_FakeQuantized, nn.Embedding):
    """`nn.Embedding` whose weight is fake-quantized once per forward. x: integers of any shape."""

    bias = None  # `QuantizedLayer` promises the attribute

    def compute(self, x: Tensor, weight: Tensor) -> Tensor:
        return F.embedding(x, weight, self.padding_idx, scale_grad_by_freq=self.scale_grad_by_freq)


LAYERS: dict[type[nn.Module], type[nn.Module]] = {
    nn.Conv1d: Conv1d,
    nn.Conv2d: Conv2d,
    nn.Conv3d: Conv3d,
    nn.ConvTranspose1d: ConvTranspose1d,
    nn.ConvTranspose2d: ConvTranspose2d,
    nn.ConvTranspose3d: ConvTranspose3d,
    nn.Linear: Linear,
    nn.Embedding: Embedding,
}
"""Float layer -> quantized layer."""

COMPUTING = ("__call__", "forward", "_conv_forward", "_output_padding")
"""The methods that decide what a layer computes."""


def is_layer(module: nn.Module) -> bool:
    """Whether the module is a float layer: a key of `LAYERS`, or a subclass that computes the same."""
    base = _torch_class(module)
    if base is None or is_quantized(module):
        return False
    if isinstance(module, NonDynamicallyQuantizableLinear) and not hasattr(module, "computes_as"):
        return False  # nn.MultiheadAttention reads its weight, past its forward
    if getattr(module, "max_norm", None) is not None or "forward" in vars(module):
        return False  # an embedding that changes its weight as it reads it; a module with another forward
    names = (name for name in COMPUTING if hasattr(base, name))
    return all(getattr(type(module), name) is getattr(base, name) for name in names)


def is_quantized(module: nn.Module) -> bool:
    """Whether `quantize_layer` was called on this module."""
    return isinstance(module, _FakeQuantized)


def as_quantized(module: nn.Module) -> QuantizedLayer:
    """The same module, typed."""
    return cast(QuantizedLayer, module)


def layer_type(module: nn.Module) -> type[nn.Module]:
    """The key of `LAYERS` that a layer, float or quantized, computes.

    Raises:
        ValueError: the module is not a layer.
    """
    base = _torch_class(module)
    if base is None:
        raise ValueError(f"{type(module).__name__} is not a layer: ask is_layer or is_quantized first.")
    return base


def channel_axis(layer: nn.Module) -> int:
    """The axis of the weight's output channels: 0, but 1 in a transposed convolution, [in, out / groups, ...].

    With several groups, outputs at the same place of each group share a scale. A depthwise one, with as many inputs as outputs,
    has axis 0 again.
    """
    if not isinstance(layer, nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d):
        return 0
    return 0 if 1 < layer.groups == layer.in_channels == layer.out_channels else 1


def owns_weight(layer: nn.Module) -> bool:
    """Whether the weight is a parameter of the layer itself, which can be set: neither parametrized nor another module's."""
    return any(name == "weight" for name, _ in layer.named_parameters(recurse=False))


def quantize_layer(layer: nn.Module, weight: Quantizer | None, input: Quantizer | None = None) -> nn.Module:
    """Turn `layer` into a quantized layer, in place.

    Args:
        layer: a float layer (`is_layer`).
        weight: quantizer of the weight; None leaves it in float.
        input: quantizer of the input; None leaves it as it comes.

    Returns:
        `layer`.
    """
    quantized = LAYERS[layer_type(layer)]
    if type(layer) in LAYERS:
        layer.__class__ = quantized
    else:  # a subclass stays one
        with_class(layer, _quantized_subclass)
    compute_hooked_weight(layer)
    layer.register_module("weight_quantizer", weight)
    layer.register_module("input_quantizer", input)
    return layer


def _quantized_subclass(base: type[nn.Module]) -> type[nn.Module]:
    torch_class = next(c for c in base.__mro__ if c in LAYERS)
    mixin = next(c for c in LAYERS[torch_class].__mro__ if "compute" in vars(c))
    forward = next(c for c in LAYERS[torch_class].__mro__ if "forward" in vars(c))
    members = {"compute": vars(mixin)["compute"], "forward": vars(forward)["forward"]}
    return type(base.__name__, (_FakeQuantized, base), {**members, "__module__": base.__module__})


def _torch_class(module: nn.Module) -> type[nn.Module] | None:
    return next((c for c in type(module).__mro__ if c in LAYERS), None)


def _quantize_if_given(quantizer: Quantizer | None, x: Tensor) -> Tensor:
    return x if quantizer is None else quantizer(x)
