"""Absorb BatchNorm into the integer weights and bias of the layer before it."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from qat.integer.arithmetic import Encoding
from qat.nn import QuantizedLayer, gain_and_shift, outputs_first

BIAS_LIMIT = 2.0**30
"""Bound of |bias| in units of the accumulator: half of the range of int32; the other half is for the products."""


class IntegerWeights(NamedTuple):
    """A layer's weights as whole numbers.

    Attributes:
        weight: whole numbers in the shape of the float weight.
        bias: (out,): real, or whole numbers in units of the accumulator.
        scale: (out,).
        product_units: how many units of the accumulator one product of codes is.
    """

    weight: Tensor
    bias: Tensor
    scale: Tensor
    product_units: int = 1


def absorb(layer: QuantizedLayer, norm: nn.Module | None, x: Encoding) -> IntegerWeights:
    """Weight codes, int32 bias and per-channel scale of layer + BatchNorm, for inputs with encoding `x`.

    With y = gamma * (w * x + b - mean) / sigma + beta, the scale becomes scale * |gamma| / sigma, the bias
    (b - mean) * gamma / sigma + beta, and a negative gamma flips the sign of the codes, which is exact on a narrow grid.
    The scale of a dead channel (gamma near 0) is raised until its bias fits int32; its codes shrink in proportion. A channel
    whose codes are all 0 gets the finest scale with which its bias fits. One unit of the bias is
    x.scale * scale / product_units.

    No input can make products and bias together leave int32: where they could, products get fewer units.

    Raises:
        ValueError: an affine weight grid, a sign flip on a grid that is not narrow, or sums that int32 cannot hold.
    """
    weights = in_units_of_the_accumulator(absorb_batch_norm(layer, norm), x)
    check_finite(layer, weights.scale * x.scale)
    check_fits_int32(layer, weights, x)
    return weights


def in_units_of_the_accumulator(exact: IntegerWeights, x: Encoding) -> IntegerWeights:
    """The weights with a whole bias, in the finest units of the accumulator with which products and bias fit int32 together."""
    units = product_units_for(int(exact.weight.abs().max()), x.highest)
    while not fits_int32(weights := _in_units(exact, x, units), x) and units > 1:
        units //= 2
    return weights


def _in_units(exact: IntegerWeights, x: Encoding, product_units: int) -> IntegerWeights:
    """The weights with a whole bias, in units of the accumulator; scales are raised where it would not fit."""
    codes, bias, scale, _ = exact
    scale = torch.where((bias != 0) & ~codes.flatten(1).any(dim=1), 0.0, scale)  # without codes the bias alone decides
    smallest = (bias.abs() * product_units / (x.scale * BIAS_LIMIT)).clamp(min=2.0**-60)
    raised = torch.maximum(scale, smallest)
    shrink = (scale / raised).reshape(-1, *[1] * (codes.dim() - 1))
    codes = torch.where(shrink < 1, torch.round(codes * shrink), codes)
    stored = raised.float()
    unit = torch.tensor(x.scale, device=stored.device) * stored / product_units
    return IntegerWeights(codes, torch.round(bias / unit.double()), stored, product_units)


def fits_int32(weights: IntegerWeights, x: Encoding) -> bool:
    """Whether products and bias together fit int32 for all codes that the input can have."""
    codes = weights.product_units * weights.weight.double().flatten(1)
    lo, hi = min(x.lowest - x.zero_point, 0), max(x.highest - x.zero_point, 0)
    largest = torch.maximum(codes * lo, codes * hi).sum(dim=1) + weights.bias
    smallest = torch.minimum(codes * lo, codes * hi).sum(dim=1) + weights.bias
    return bool((largest < 2.0**31).all() and (smallest >= -(2.0**31)).all())


def check_fits_int32(layer: QuantizedLayer, weights: IntegerWeights, x: Encoding) -> None:
    """Raise ValueError, naming the layer, if `fits_int32` is false."""
    if not fits_int32(weights, x):
        assert layer.weight_quantizer is not None
        raise ValueError(
            f"the sums of {layer.weight_quantizer.label!r}, over {weights.weight[0].numel()} products and the bias, do not fit "
            "int32: give its weight fewer bits, split it into several layers, or leave its input in float (activation: null)."
        )


def product_units_for(largest: int, highest: int) -> int:
    """How many units of the accumulator one product of codes should be: the largest power of two that is safe.

    Weight codes up to `largest`, multiplied by the result, fit int8 and never saturate (`IntegerLayer.may_saturate`) with
    input codes up to `highest`. The result is 1 if no larger power of two is safe.

    The bias is rounded to whole units of the accumulator. With 2-bit weights one product of codes is a large part of a step
    of the output, so units of one product would round the bias coarsely. Multiplying the codes by 64, still in int8, makes
    the bias 64 times as exact and does not change what the sums mean.

    >>> product_units_for(1, 255), product_units_for(7, 255), product_units_for(7, 15), product_units_for(127, 15)
    (64, 8, 16, 1)
    """
    limit = 64 if highest > 127 else 127
    return 2 ** max((limit // max(largest, 1)).bit_length() - 1, 0)


def absorb_batch_norm(layer: QuantizedLayer, norm: nn.Module | None) -> IntegerWeights:
    """Weight codes, real bias and per-channel scale of layer + BatchNorm, all float64.

    Raises:
        ValueError: an affine weight grid, or a sign flip on a grid that is not narrow.
    """
    quantizer = layer.weight_quantizer
    assert quantizer is not None
    if not quantizer.spec.symmetric:
        raise ValueError(f"weight {quantizer.label!r} is affine: integer layers need symmetric: true.")
    with torch.no_grad():
        codes = outputs_first(layer, quantizer.quantize(layer.weight).double())
        out = codes.shape[0]
        scale = quantizer.qparams().scale.double()
        scale = scale.expand(out) if len(scale) == 1 else scale.repeat(out // len(scale))  # once for each group
        bias = torch.zeros(out, dtype=torch.float64, device=codes.device)
        if layer.bias is not None:
            bias = layer.bias.double()
        if norm is not None:
            gain, shift = gain_and_shift(norm)
            scale, bias = scale * gain.abs(), bias * gain + shift
            flip = torch.where(gain < 0, -1.0, 1.0).reshape(-1, *[1] * (codes.dim() - 1))
            codes = codes * flip
        if int(codes.max()) > 127:
            raise ValueError(
                f"weight {quantizer.label!r} must be flipped for a negative BatchNorm gain: write narrow: true."
            )
        check_finite(layer, scale, bias)
        return IntegerWeights(codes, bias, scale)


def check_finite(layer: QuantizedLayer, *numbers: Tensor) -> None:
    """Raise ValueError, naming the layer, if a number is not finite in float32, in which files store it."""
    if not all(bool(torch.isfinite(x.float()).all()) for x in numbers):
        assert layer.weight_quantizer is not None
        raise ValueError(
            f"the scale, bias or BatchNorm of {layer.weight_quantizer.label!r} is not finite: its training diverged, lower the "
            "learning rate."
        )
