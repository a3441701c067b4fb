"""Sums of integer layers never leave int32, whatever the input: against sums in 64 bits."""

import random

import pytest
import torch
from torch import Tensor, nn

from qat import Grid, PerChannel, QuantSpec
from qat.integer.arithmetic import Encoding
from qat.integer.convert_layer import integer_layer
from qat.integer.layers import IntegerLayer
from qat.nn import quantize_layer
from qat.quantizers import Static


def layer(weight: Tensor, bias: Tensor, bits: int) -> nn.Linear:
    linear = nn.Linear(weight.shape[1], weight.shape[0])
    with torch.no_grad():
        linear.weight.copy_(weight)
        linear.bias.copy_(bias)
    quantizer = Static(QuantSpec(Grid(bits, narrow=True), PerChannel()), tuple(weight.shape))
    quantizer.label = "fc.weight"
    quantizer.set_range(-weight.abs().amax(dim=1), weight.abs().amax(dim=1))
    quantize_layer(linear, quantizer)
    return linear


def extremes(integer: IntegerLayer, row: int, x: Encoding) -> tuple[int, int]:
    """The smallest and largest sum of one output, in 64 bits."""
    lo, hi = x.lowest - x.zero_point, x.highest - x.zero_point
    products = integer.product_units * integer.weight[row].long()
    both, bias = torch.stack([products * lo, products * hi]), int(integer.bias[row])
    return int(both.amin(dim=0).sum()) + bias, int(both.amax(dim=0).sum()) + bias


def test_a_wide_layer_near_full_codes_is_the_float_layer() -> None:
    """With 8 units a product its sums wrapped around: 10039 became -8873."""
    inputs, x = 160_000, Encoding(2.0**-8, 0, 0, 255)
    linear = layer(torch.full((1, inputs), 0.063), torch.tensor([0.03]), bits=4)
    integer = integer_layer(linear, None, x, None)
    codes = torch.full((1, inputs), 255, dtype=torch.uint8)
    assert integer(codes).item() == pytest.approx(inputs * 255 * 2.0**-8 * 0.063 + 0.03, rel=1e-4)
    assert integer.product_units == 4
    assert extremes(integer, 0, x)[1] < 2**31


def test_sums_are_bounded_or_refused() -> None:
    draw = random.Random(0)
    refused = []
    for _ in range(40):
        bits, inputs = draw.choice([2, 4, 8, 8]), draw.choice([300, 70_000, 70_000])
        zero_point = draw.choice([0, 7, 128])
        x = Encoding(2.0 ** draw.randint(-20, 10), zero_point, 0, draw.choice([255, 255, 128]))
        weight = draw.choice([torch.ones, torch.randn])(2, inputs) * 2.0 ** draw.randint(-10, 10)
        bias = torch.tensor([draw.choice([-1, 1]) * 2.0 ** draw.randint(-30, 30), 0.0])
        try:
            integer = integer_layer(layer(weight, bias, bits), None, x, None)
        except ValueError as error:
            refused.append(str(error))
            continue
        for row in range(2):
            smallest, largest = extremes(integer, row, x)
            assert -(2**31) <= smallest <= largest < 2**31
    message = "the sums of 'fc.weight', over 70000 products and the bias, do not fit int32: give its weight fewer bits"
    assert 0 < len(refused) < 20
    assert all(text.startswith(message) for text in refused)
