"""Learned rounding against the paper's formulas and, where a layer is small enough, against all roundings there are."""

import itertools

import numpy as np
import pytest
import torch
from torch import nn

from qat import Grid, PerChannel, PerGroup, PerTensor, QuantSpec
from qat.nn import as_quantized, quantize_layer
from qat.ptq import AdaRound, Calibrate, apply_passes
from qat.ptq.reconstruction import QDropQuantizer, Reconstruction
from qat.ptq.rounding import (
    SoftRounding,
    finish_soft_rounding,
    rectified_sigmoid,
    rounding_regularizer,
    start_soft_rounding,
)
from qat.quantizers import Static
from qat.transform import load_policy

WEIGHTS_ONLY = load_policy({"rules": {"all": {"match": "*", "weight": {"bits": 2}, "activation": None}}})
GRANULARITIES = [PerTensor(), PerChannel(), PerGroup(6)]


def test_the_rectified_sigmoid_is_that_of_the_paper() -> None:
    v = np.linspace(-6, 6, 101)
    expected = np.clip(1.2 / (1 + np.exp(-v)) - 0.1, 0, 1)
    np.testing.assert_allclose(rectified_sigmoid(torch.tensor(v)), expected, rtol=1e-12)


@pytest.mark.parametrize("beta", [2.0, 8.0, 20.0])
def test_the_regularizer_is_that_of_the_paper(beta: float) -> None:
    h = np.linspace(0, 1, 21)
    expected = sum(1 - abs(2 * x - 1) ** beta for x in h)
    assert rounding_regularizer(torch.tensor(h), beta).item() == pytest.approx(expected)


def test_beta_falls_on_a_cosine_after_the_warmup() -> None:
    how = Reconstruction(iterations=100)
    assert [how.beta(step) for step in (0, 20, 60, 100)] == pytest.approx([20.0, 20.0, 11.0, 2.0])


def layer(granularity: PerTensor | PerChannel | PerGroup, symmetric: bool = True) -> nn.Module:
    made = nn.Linear(12, 5)
    spec = QuantSpec(Grid(3, signed=symmetric, narrow=symmetric), granularity, symmetric)
    quantizer = Static(spec, (5, 12))
    rows = granularity.rows(made.weight.detach())
    quantizer.set_range(0.8 * rows.amin(dim=1), 0.8 * rows.amax(dim=1))  # some weights are clipped
    return quantize_layer(made, quantizer)


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_it_starts_with_the_float_weight_and_decides_for_the_nearest_code(granularity, symmetric) -> None:
    made = as_quantized(layer(granularity, symmetric))
    quantizer = made.weight_quantizer
    assert quantizer is not None
    spec, (scale, zero_point) = quantizer.spec, quantizer.qparams()
    scale, zero_point = (granularity.broadcastable(p, (5, 12)) for p in (scale, zero_point))
    view = granularity.view(made.weight.detach())
    lo, hi = (spec.grid.qmin - zero_point) * scale, (spec.grid.qmax - zero_point) * scale
    clipped = torch.clamp(view, lo, hi)
    assert (clipped != view).any()
    rounding = SoftRounding(quantizer, made.weight)
    torch.testing.assert_close(granularity.view(rounding(made.weight)), clipped, rtol=0, atol=2e-4)
    assert torch.equal(rounding.hard_rounded(), quantizer(made.weight))


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_hardened_weights_are_what_the_quantizer_makes_of_them(granularity, symmetric) -> None:
    made = as_quantized(layer(granularity, symmetric))
    quantizer, before = made.weight_quantizer, made.weight.detach().clone()
    assert quantizer is not None
    rounding = start_soft_rounding(made)
    with torch.no_grad():
        rounding.v.copy_(torch.randn(rounding.v.shape))
    finish_soft_rounding(made, rounding)
    assert made.weight_quantizer is quantizer
    assert torch.equal(quantizer(made.weight), made.weight)
    steps = quantizer.quantize(made.weight) - quantizer.quantize(before)
    assert set(steps.unique().tolist()) == {-1.0, 0.0, 1.0}  # never further than one code from the nearest


def test_adaround_comes_near_the_best_of_all_roundings() -> None:
    """Each row of 8 weights has 256 roundings."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(8, 6, bias=False))
    x = torch.randn(512, 8) @ torch.randn(8, 8)  # correlated inputs: the nearest code is not the best one
    nearest = apply_passes([Calibrate("MinMax")], network, WEIGHTS_ONLY, [x])
    found = apply_passes([Calibrate("MinMax"), AdaRound(600, regularization=0.1)], network, WEIGHTS_ONLY, [x])
    weight = network[0].weight.detach().double().numpy()
    scale = np.abs(weight).max(axis=1)  # two bits, narrow: codes -1, 0, 1
    hessian = (x.double().T @ x.double()).numpy()

    def error(rounded: np.ndarray, row: int) -> float:
        difference = rounded - weight[row]
        return float(difference @ hessian @ difference)

    best, ours, usual = 0.0, 0.0, 0.0
    for row in range(6):
        below = np.floor(weight[row] / scale[row])
        choices = (np.clip(below + up, -1, 1) for up in itertools.product((0, 1), repeat=8))
        best += min(error(codes * scale[row], row) for codes in choices)
        ours += error(as_quantized(found[0]).weight_quantizer(found[0].weight)[row].detach().double().numpy(), row)
        usual += error(as_quantized(nearest[0]).weight_quantizer(nearest[0].weight)[row].detach().double().numpy(), row)
    assert best < 0.7 * usual  # there is something to find
    assert ours < best + 0.4 * (usual - best)  # it relaxes the choice, and may miss the very best


def test_dropping_leaves_that_share_in_float() -> None:
    spec = QuantSpec(Grid(4))
    quantizer = Static(spec)
    quantizer.set_range(torch.tensor([-1.0]), torch.tensor([1.0]))
    x = torch.rand(10_000) + 0.01
    y = QDropQuantizer(quantizer, 0.3)(x)
    kept = y == x
    assert 0.28 < kept.float().mean() < 0.32
    assert torch.equal(y[~kept], quantizer(x)[~kept])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"iterations": 0}, "iterations=0 is not possible: write a whole number, 1 or more."),
        ({"lr": -1.0}, "lr=-1.0 is not possible: write a number, 0 or more."),
        ({"drop": 1.0}, "drop=1.0 is not a probability below 1: write for example 0.5."),
    ],
)
def test_impossible_options_say_what_to_write(options, message) -> None:
    with pytest.raises(ValueError, match=message):
        Reconstruction(**options)
