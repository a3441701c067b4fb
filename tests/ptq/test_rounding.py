"""Learned rounding against the paper's formulas and, where a layer is small enough, against all roundings there are."""

import copy
import itertools

import numpy as np
import pytest
import torch
from torch import nn

from qat import Grid, PerChannel, PerGroup, PerTensor, QuantSpec
from qat.nn import as_quantized, quantize_layer
from qat.ptq import AdaRound, Calibrate, apply_passes
from qat.ptq.positions import LayerAtPositions
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


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_v_gets_the_gradients_of_the_weight_and_of_the_regularizer(granularity, symmetric) -> None:
    """Autograd of the paper's formulas is the reference. Weights that are clipped either way get none."""
    rounding = SoftRounding(*quantizer_and_weight(granularity, symmetric))
    with torch.no_grad():
        rounding.v.copy_(2 * torch.randn(rounding.v.shape))
    rounding.regularization, rounding.beta = 0.3, 5.0
    grad = torch.randn(5, 12)
    (found,) = torch.autograd.grad(rounding(rounding.v), rounding.v, grad.t().contiguous().t())
    v = rounding.v.detach().clone().requires_grad_()
    h = rectified_sigmoid(v)
    weight = (torch.clamp(rounding.below + h, rounding.lo, rounding.hi) * rounding.scale).reshape(5, 12)
    loss = (weight * grad).sum() + 0.3 * rounding_regularizer(h, 5.0)
    (expected,) = torch.autograd.grad(loss, v)
    assert rounding.movable.any()
    assert not rounding.movable.all()
    torch.testing.assert_close(found, expected * rounding.movable)
    assert found.stride() == rounding.v.stride()  # a fused optimizer reads both in memory order


def quantizer_and_weight(granularity, symmetric):
    made = as_quantized(layer(granularity, symmetric))
    return made.weight_quantizer, made.weight


def test_it_is_decided_when_no_h_that_matters_is_between_0_and_1() -> None:
    rounding = SoftRounding(*quantizer_and_weight(PerChannel(), True))
    with torch.no_grad():
        rounding.v.copy_(torch.where(rounding.movable, 2.5, 0.1))
        assert rounding.decided()
        rounding.v[tuple(rounding.movable.nonzero()[0])] = 2.3
    assert not rounding.decided()


def test_a_segment_ends_when_all_is_decided() -> None:
    seen: list[int] = []

    class Data:
        def sample(self, images: int, _positions: int) -> tuple[torch.Tensor, torch.Tensor]:
            seen.append(images)
            return torch.zeros(1, 12), torch.zeros(1, 5)

        def compute(self, x: torch.Tensor) -> torch.Tensor:
            return x @ rounding(rounding.v).t()

    rounding = SoftRounding(*quantizer_and_weight(PerChannel(), True))
    with torch.no_grad():
        rounding.v.fill_(3.0)
    Reconstruction(100)._learn(Data(), [rounding], [])  # type: ignore[arg-type]
    assert len(seen) == 20  # the warmup


LAYERS_AT_POSITIONS: dict[str, tuple[nn.Module, tuple[int, ...]]] = {
    "linear": (nn.Linear(12, 5), (7, 12)),
    "linear of tokens": (nn.Linear(12, 5, bias=False), (7, 3, 12)),
    "1-D": (nn.Conv1d(4, 6, 3, stride=2, padding=2, dilation=2), (3, 4, 11)),
    "2-D": (nn.Conv2d(4, 6, (3, 2), stride=(2, 1), padding=(0, 1), dilation=(1, 2), bias=False), (3, 4, 9, 8)),
    "groups": (nn.Conv2d(4, 6, 3, groups=2, padding="same", padding_mode="reflect"), (3, 4, 6, 5)),
    "depthwise": (nn.Conv2d(6, 6, 3, groups=6, padding=1), (3, 6, 6, 5)),
    "3-D": (nn.Conv3d(2, 3, 2, padding=1, padding_mode="circular"), (2, 2, 3, 4, 5)),
}


@pytest.mark.parametrize("name", LAYERS_AT_POSITIONS)
def test_a_layer_at_positions_is_the_layer(name: str) -> None:
    """Each output that is drawn is one of the layer's, and the target is that of the same position."""
    made, shape = LAYERS_AT_POSITIONS[name]
    weight = made.weight.detach()
    spec = QuantSpec(Grid(4, narrow=True), PerChannel())
    quantizer = Static(spec, tuple(weight.shape))
    quantizer.set_range(-weight.flatten(1).abs().amax(dim=1), weight.flatten(1).abs().amax(dim=1))
    quantized, x = quantize_layer(copy.deepcopy(made), quantizer), torch.randn(shape)
    behind = nn.Sequential()
    if isinstance(made, nn.Conv2d):
        behind = nn.Sequential(nn.BatchNorm2d(made.out_channels), nn.ReLU()).eval()
        behind[0].running_mean.normal_()
        behind[0].running_var.uniform_(0.5, 2.0)
    whole = behind(quantized(x))
    assert LayerAtPositions.takes(quantized, list(behind), x)
    data = LayerAtPositions(quantized, behind, x, whole.detach())
    found, target = [], []
    for _ in range(3):
        inputs, there = data.sample(2, 5)
        found.append(data.compute(inputs))
        target.append(there)
    torch.testing.assert_close(torch.cat(found), torch.cat(target), rtol=1e-5, atol=1e-5)
    assert len(found[0]) == 2 * min(5, whole[0].numel() // target[0].shape[1])


def test_a_layer_that_needs_whole_images_is_not_computed_at_positions() -> None:
    conv, x = nn.Conv2d(3, 4, 3), torch.randn(2, 3, 5, 5)
    assert not LayerAtPositions.takes(conv, [nn.BatchNorm2d(4)], x)  # in training
    assert not LayerAtPositions.takes(conv, [], x[0])
    assert not LayerAtPositions.takes(nn.ConvTranspose2d(3, 4, 3), [], x)
    assert not LayerAtPositions.takes(nn.Linear(5, 5), [nn.BatchNorm1d(3).eval()], x[0])
