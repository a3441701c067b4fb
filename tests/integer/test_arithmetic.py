"""qat.integer.arithmetic and layers against the numpy executor."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from qat.integer import arithmetic
from qat.integer.arithmetic import Encoding
from qat.integer.layers import IntegerConv, IntegerLinear
from tests.oracles import integer as oracle

SCALES = [(0.02, 0.013, 0.031), (0.25, 0.5, 1.0), (2.0**-7, 2.0**-9, 2.0**-6), (0.1, 0.0999, 0.2)]
"""Arbitrary scales, and powers of two, with which many sums are exact ties."""


def all_pairs() -> tuple[torch.Tensor, torch.Tensor]:
    grid = torch.arange(256, dtype=torch.uint8)
    return grid.repeat_interleave(256), grid.repeat(256)


@pytest.mark.parametrize("scales", SCALES)
@pytest.mark.parametrize("zeros", [(0, 0, 0), (128, 0, 0), (128, 128, 128), (3, 250, 77)])
def test_add_equals_the_oracle_for_every_pair_of_codes(scales, zeros):
    a, b = all_pairs()
    x, y, z = (Encoding(float(np.float32(s)), zero) for s, zero in zip(scales, zeros, strict=True))
    expected = oracle.add(a.numpy(), b.numpy(), x.scale, x.zero_point, y.scale, y.zero_point, z.scale, z.zero_point)
    assert np.array_equal(arithmetic.add(a, b, x, y, z).numpy(), expected)
    assert len(np.unique(expected)) > 50


@pytest.mark.parametrize("scales", SCALES)
def test_requantize_equals_the_oracle_for_every_code(scales):
    codes = torch.arange(256, dtype=torch.uint8)
    x, y = Encoding(float(np.float32(scales[0])), 5), Encoding(float(np.float32(scales[2])), 8, 0, 15)
    expected = oracle.lookup(codes.numpy(), x.scale, 5, y.scale, 8, 0, 15)
    assert np.array_equal(arithmetic.requantize(codes, x, y).numpy(), expected)


def test_global_average_equals_the_oracle():
    codes = torch.randint(0, 256, (20, 16, 7, 5), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    x, y = Encoding(float(np.float32(0.037)), 120), Encoding(float(np.float32(0.0151)), 100)
    expected = oracle.global_average(codes.numpy(), x.scale, 120, y.scale, 100)
    assert np.array_equal(arithmetic.global_average(codes, x, y).numpy(), expected)
    assert len(np.unique(expected)) > 20


@pytest.mark.parametrize(("stride", "padding", "groups"), [(1, 0, 1), (2, 1, 1), (1, 1, 4)])
def test_convolution_equals_the_oracle(stride, padding, groups):
    random = np.random.default_rng(0)
    conv = nn.Conv2d(8, 12, 3, stride, padding, groups=groups)
    weight = random.integers(-127, 128, tuple(conv.weight.shape))
    bias = random.integers(-50_000, 50_000, 12)
    scale = random.uniform(0.001, 0.02, 12).astype(np.float32)
    codes = random.integers(0, 256, (3, 8, 9, 9)).astype(np.uint8)
    x, y = Encoding(float(np.float32(0.03)), 131), Encoding(float(np.float32(1.3)), 99)
    module = IntegerConv(torch.tensor(weight), torch.tensor(bias), torch.tensor(scale), 8, x, y, conv=conv)
    accumulator = oracle.conv2d(codes, 131, weight, bias, stride, padding, groups)
    assert np.array_equal(module.accumulate(torch.tensor(codes)).numpy(), accumulator)
    expected = oracle.requantize(accumulator, x.scale, scale.reshape(1, -1, 1, 1), y.scale, 99)
    assert np.array_equal(module(torch.tensor(codes)).numpy(), expected)
    assert len(np.unique(expected)) > 20


def test_sums_that_float32_cannot_hold_are_accumulated_exactly():
    x, weight = Encoding(1.0, 0), torch.full((1, 1024), 127)
    weight[0, 0] = 126
    module = IntegerLinear(weight, torch.zeros(1), torch.ones(1), 8, x, None)
    codes = torch.full((1, 1024), 255, dtype=torch.uint8)
    assert not module.fits_float32
    assert module.accumulate(codes).item() == 255 * (127 * 1023 + 126) > 2**24


def test_rectified_bounds_are_codes():
    encoding = Encoding(0.05, 128)
    assert encoding.after_relu() == Encoding(0.05, 128, 128, 255)
    assert encoding.after_relu(6.0) == Encoding(0.05, 128, 128, 128 + 120)
    assert Encoding(0.02, 0).after_relu(6.0) == Encoding(0.02, 0)
