"""One quantized layer, and the BatchNorm behind it, in integer form."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from qat.integer.absorb import IntegerWeights, absorb, absorb_batch_norm, check_fits_int32, in_units_of_the_accumulator
from qat.integer.arithmetic import Encoding
from qat.integer.layers import (
    DynamicLayer,
    IntegerConv,
    IntegerConvTranspose,
    IntegerLayer,
    IntegerLinear,
)
from qat.integer.weight_only import StoredMatrix, WeightOnlyLayer, WeightOnlyModule
from qat.nn import as_quantized, drop_matrices, gain_and_shift, is_quantized, quantized_weights
from qat.quantizers import Quantizer, ScaledFloat


def integer_layer(layer: nn.Module, norm: nn.Module | None, x: Encoding, output: Encoding | None) -> IntegerLayer:
    """Layer + BatchNorm on codes with encoding `x`; float32 out if `output` is None."""
    return _with_weights(layer, absorb(as_quantized(layer), norm, x), x, output, norm is not None)


def dynamic_layer(layer: nn.Module, norm: nn.Module | None, per_token: bool) -> DynamicLayer:
    """Layer + BatchNorm on an input that is quantized on its own range; float32 out."""
    weights = absorb_batch_norm(as_quantized(layer), norm)
    without_bias = weights._replace(bias=torch.zeros_like(weights.bias))
    check_fits_int32(as_quantized(layer), without_bias, Encoding(1.0, 0))
    check_fits_int32(as_quantized(layer), without_bias, Encoding(1.0, 255))
    integer = _with_weights(layer, without_bias, Encoding(1.0, 0), None, norm is not None)
    return DynamicLayer(integer, weights.bias, per_token)


def norm_layer(norm: nn.Module | None, x: Encoding, output: Encoding) -> IntegerLayer:
    """A BatchNorm2d without a layer before it: a depthwise convolution of 1 x 1 with the weight 1."""
    assert isinstance(norm, nn.BatchNorm2d)
    gain, shift = gain_and_shift(norm)
    one = torch.ones(len(gain), 1, 1, 1, dtype=torch.float64, device=gain.device)
    codes = torch.where(gain < 0, -1.0, 1.0).reshape(one.shape) * one
    weights = in_units_of_the_accumulator(IntegerWeights(codes, shift, gain.abs()), x)
    depthwise = nn.Conv2d(len(gain), len(gain), 1, groups=len(gain))
    arguments = (weights.weight, weights.bias, weights.scale, 2, x, output, weights.product_units)
    return IntegerConv(*arguments, conv=depthwise)


def weight_only(module: nn.Module) -> nn.Module:
    """A module with stored weight codes and float arithmetic; the module itself if it has no quantized weight.

    The module loses its weight quantizers.
    """
    stored = {name: _codes(weight.detach(), quantizer) for name, weight, quantizer in quantized_weights(module)}
    if not stored:
        return module
    if is_quantized(module):
        module.register_module("weight_quantizer", None)
        return WeightOnlyLayer(module, *stored["weight"])
    labels = {name: quantizer.label for name, _, quantizer in quantized_weights(module)}
    drop_matrices(module)
    return WeightOnlyModule(
        module, {name: StoredMatrix(labels[name], *arguments) for name, arguments in stored.items()}
    )


def _codes(weight: Tensor, quantizer: Quantizer) -> tuple[Tensor, Tensor, Tensor, torch.Size, int, ScaledFloat | None]:
    """The arguments of `StoredWeight`."""
    granularity, shape = quantizer.spec.granularity, tuple(weight.shape)
    codes = quantizer.quantize(weight)  # first, because some quantizers take their scale from the weight that they see
    scale, zero_point = (granularity.broadcastable(p, shape) for p in quantizer.qparams())
    scaled_float = quantizer if isinstance(quantizer, ScaledFloat) else None
    return codes, scale, zero_point, granularity.view(weight).shape, quantizer.spec.grid.bits, scaled_float


def _with_weights(
    layer: nn.Module, weights: IntegerWeights, x: Encoding, output: Encoding | None, absorbed: bool
) -> IntegerLayer:
    """An integer layer with the shape of `layer` and these weights. absorbed: whether they contain a BatchNorm."""
    quantizer = as_quantized(layer).weight_quantizer
    assert quantizer is not None
    codes, bias, scale, product_units = weights
    arguments = (codes, bias, scale, quantizer.spec.grid.bits, x, output, product_units)
    if isinstance(layer, nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d):
        return IntegerConvTranspose(*arguments, conv=layer)
    if isinstance(layer, nn.Conv1d | nn.Conv2d | nn.Conv3d):
        return IntegerConv(*arguments, conv=layer)
    return IntegerLinear(*arguments, absorbed=absorbed)
