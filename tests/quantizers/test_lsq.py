"""LSQ and Static: forward and gradients of Esser et al. 2020, by the numpy oracle."""

import numpy as np
import pytest
import torch

from qat import Grid, QuantSpec
from qat.quantizers import LSQ, Static
from tests.oracles import fake_quantize as oracle
from tests.quantizers.catalogue import LAYOUTS, SHAPE, Case, assert_float32_maths, data, on_grid

layouts = pytest.mark.parametrize("layout", ["activation", "per_channel", "per_group"])
forms = pytest.mark.parametrize("form", ["signed", "unsigned", "affine"])
both = pytest.mark.parametrize("name", ["lsq", "static"])


@both
@layouts
@forms
def test_forward_and_input_gradient_are_those_of_the_oracle(name, layout, form) -> None:
    x = data()
    quantizer = Case(name, layout, 4, form).calibrated(0.4 * x)  # some values are clipped
    scale, zero_point = (p.numpy().copy() for p in quantizer.qparams())
    grid, shared = quantizer.spec.grid, LAYOUTS[layout][2](SHAPE)
    arguments = (x.numpy(), scale, zero_point, grid.qmin, grid.qmax, shared)
    leaf, grad = x.clone().requires_grad_(), torch.randn(SHAPE)
    y = quantizer(leaf)
    y.backward(grad)
    assert np.array_equal(y.detach().numpy(), oracle.forward(*arguments))
    dx, _ = oracle.backward(*arguments, grad.numpy())
    assert 0 < (dx == 0).mean() < 0.9  # clipped and interior values are there
    np.testing.assert_array_equal(leaf.grad.numpy(), dx.astype(np.float32))


@both
@forms
def test_gradients_are_those_of_a_straight_line_inside_and_none_outside(name, form) -> None:
    quantizer = Case(name, form=form).calibrated(data())
    scale, zero_point = quantizer.qparams()
    lo, hi = quantizer.spec.grid.qmin - zero_point, quantizer.spec.grid.qmax - zero_point
    v = torch.cat([lo - 1e30, lo, lo + 0.25, lo + 0.5, torch.zeros(1), hi - 0.5, hi - 0.25, hi, hi + 0.25, hi + 1e30])
    x = (v * scale)[:, None].requires_grad_()
    quantizer(x).sum().backward()
    assert torch.isfinite(x.grad).all()
    assert {0.0, 1.0} == set(x.grad.flatten().tolist())
    assert all(torch.isfinite(p.grad).all() for p in quantizer.parameters())


@both
def test_bfloat16_on_the_bounds_keeps_the_maths_in_float32(name) -> None:
    quantizer = Case(name, bits=8).calibrated(torch.randn(SHAPE))
    x = torch.randn(64, *SHAPE)
    reach = 127 * quantizer.qparams().scale.item()
    x[0], x[1] = reach, torch.linspace(-1.02, 1.02, 48).reshape(SHAPE) * reach  # on the bounds, also once rounded
    assert_float32_maths(quantizer, x)


def test_lsq_learns_a_better_scale_than_its_first() -> None:
    x = torch.randn(64, 100)
    x[0, 0] = 12.0  # min-max starts far too wide
    quantizer = Case("lsq", bits=3).calibrated(x)
    first = (quantizer(x) - x).square().mean().item()
    optimizer = torch.optim.SGD(quantizer.parameters(), lr=0.5)
    for _ in range(200):
        optimizer.zero_grad()
        (quantizer(x) - x).square().sum(dim=1).mean().backward()
        optimizer.step()
    learned = (quantizer(x) - x).square().mean().item()
    best = min(
        float(((oracle.forward(x.numpy(), np.array([s], np.float32), np.zeros(1, int), -3, 3,
                               oracle.per_tensor((64, 100))) - x.numpy()) ** 2).mean())
        for s in np.linspace(0.2, 4, 200)
    )  # fmt: skip
    assert learned < 0.3 * first
    assert learned < 1.2 * best


def test_static_never_learns_its_range() -> None:
    assert isinstance(Case("static").build(), Static)
    assert list(Case("static").build().parameters()) == []


@layouts
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_the_scale_gradient_of_lsq_is_eq_3_times_g(layout: str, bits: int) -> None:
    x, grad = data(), torch.randn(SHAPE)
    quantizer = Case("lsq", layout, bits).calibrated(0.4 * x)
    quantizer(x).backward(grad)
    shared = LAYOUTS[layout][2](SHAPE)
    # weights: the elements that share a scale; activations: those of one sample
    elements_per_scale = {"activation": 12, "per_channel": 12, "per_group": 6}[layout]
    g = 1 / np.sqrt(elements_per_scale * (2 ** (bits - 1) - 1))
    scale, zero_point = (p.numpy() for p in quantizer.qparams())
    grid = quantizer.spec.grid
    _, expected = oracle.backward(x.numpy(), scale, zero_point, grid.qmin, grid.qmax, shared, grad.numpy(), g)
    np.testing.assert_allclose(quantizer.scale.grad.numpy(), expected, rtol=1e-4, atol=1e-5)


def test_a_weight_with_one_scale_counts_all_its_elements() -> None:
    x, grad = data(), torch.randn(SHAPE)
    quantizer = LSQ(QuantSpec(Grid(4, narrow=True)), SHAPE)  # a shape: a weight
    quantizer.set_range(torch.tensor([-2.0]), torch.tensor([2.0]))
    quantizer(x).backward(grad)
    scale, zero_point = (p.numpy() for p in quantizer.qparams())
    shared = oracle.per_tensor(SHAPE)
    _, expected = oracle.backward(x.numpy(), scale, zero_point, -7, 7, shared, grad.numpy(), 1 / np.sqrt(48 * 7))
    np.testing.assert_allclose(quantizer.scale.grad.numpy(), expected, rtol=1e-4)


@pytest.mark.parametrize("copies", [2, 16])
def test_the_scale_gradient_of_an_activation_does_not_depend_on_the_batch_size(copies: int) -> None:
    x = torch.randn(4, 3, 5, 5)
    gradients = []
    for batch in (x, x.repeat(copies, 1, 1, 1)):
        quantizer = Case("lsq").calibrated(x)
        (quantizer(batch) ** 3 + quantizer(batch)).mean().backward()
        gradients.append(quantizer.scale.grad.item())
    assert gradients[0] != 0
    assert gradients[1] == pytest.approx(gradients[0], rel=1e-4)


def test_a_scale_below_its_floor_recovers() -> None:
    x = torch.randn(8, 50)
    quantizer = Case("lsq").calibrated(x)
    first = quantizer.qparams().scale.clone()
    with torch.no_grad():
        quantizer.scale.fill_(-3.0)
    assert quantizer.qparams().scale.item() == pytest.approx(first.item() / 1024)
    assert on_grid(quantizer, quantizer(x), "activation")
    optimizer = torch.optim.SGD(quantizer.parameters(), lr=1.0)
    for _ in range(300):
        optimizer.zero_grad()
        (quantizer(x) - x).square().sum(dim=1).mean().backward()
        optimizer.step()
    assert 0.3 * first < quantizer.qparams().scale < 2 * first
