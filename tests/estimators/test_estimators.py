"""Estimators: whole numbers forward, the papers' gradients backward, alone and inside a quantizer."""

import numpy as np
import pytest
import torch
from torch import Tensor

from qat import Grid, QuantSpec, TensorRule
from qat.estimators import DSQ, EWGS, Stochastic, StraightThrough
from qat.quantizers import LSQ, PACT
from tests.oracles import estimators as oracle

PAIRS = {
    "straight_through": (StraightThrough(), oracle.straight_through),
    "ewgs": (EWGS(0.3), lambda v, g: oracle.ewgs(v, g, 0.3)),
    "dsq": (DSQ(0.2), lambda v, g: oracle.dsq(v, g, 0.2)),
    "dsq_steep": (DSQ(0.05), lambda v, g: oracle.dsq(v, g, 0.05)),
}
pairs = pytest.mark.parametrize("name", PAIRS)


def interior() -> Tensor:
    """Whole numbers are not among them: there the slope of DSQ jumps, and differences cannot see it."""
    v = torch.rand(400) * 14 - 7
    return torch.where((v - v.round()).abs() < 1e-2, v + 0.02, v)


@pytest.mark.parametrize("estimator", [*(p[0] for p in PAIRS.values()), Stochastic().eval()], ids=repr)
def test_the_forward_is_half_to_even(estimator) -> None:
    v = torch.tensor([-2.5, -1.5, -0.5, 0.0, 0.49, 0.5, 1.5, 2.5, 254.5])
    assert torch.equal(estimator(v), torch.from_numpy(np.rint(v.numpy())))


@pairs
def test_the_gradient_is_the_papers(name: str) -> None:
    estimator, slope = PAIRS[name]
    v, grad = interior().requires_grad_(), torch.randn(400)
    estimator(v).backward(grad)
    v64, g64 = v.detach().double().numpy(), grad.double().numpy()
    np.testing.assert_allclose(v.grad.numpy(), g64 * slope(v64, g64), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("estimator", [DSQ(0.5), DSQ(0.02), EWGS(2.0), Stochastic(), StraightThrough()], ids=repr)
def test_gradients_are_finite_at_whole_numbers_and_in_between(estimator) -> None:
    v = torch.arange(-8, 8.5, 0.5).requires_grad_()
    estimator(v).sum().backward()
    assert torch.isfinite(v.grad).all()
    assert (v.grad >= 0).all()


def test_the_mean_slope_of_dsq_over_a_step_is_1() -> None:
    v = torch.linspace(0, 1, 10_001)[:-1].requires_grad_()
    DSQ(0.1)(v).sum().backward()
    assert v.grad.mean().item() == pytest.approx(1.0, rel=1e-3)
    assert v.grad.max() > 2 * v.grad.min()


@pairs
@pytest.mark.parametrize("affine", [False, True])
def test_in_a_quantizer_the_scale_gets_the_rest_of_the_chain_rule(name: str, affine: bool) -> None:
    estimator, slope = PAIRS[name]
    spec = QuantSpec(Grid(4, signed=not affine, narrow=not affine), symmetric=not affine)
    quantizer = LSQ(spec, (500,), estimator=estimator)  # a shape: N = 500
    quantizer.set_range(torch.tensor([-1.75]), torch.tensor([1.75]))
    scale, zero_point = (p.item() for p in quantizer.qparams())
    v = torch.cat([interior(), torch.rand(100) * 60 - 30])
    x, grad = (v * scale).requires_grad_(), torch.randn(500)
    y = quantizer(x)
    y.backward(grad)
    v64, g64 = x.detach().double().numpy() / scale, grad.double().numpy()
    qmin, qmax = spec.grid.qmin - zero_point, spec.grid.qmax - zero_point
    rounded = np.clip(np.rint(x.detach().numpy() / np.float32(scale)), qmin, qmax)
    dx, dscale = oracle.backward(v64, rounded, slope(v64, g64), qmin, qmax, g64)
    assert np.array_equal(y.detach().numpy(), rounded.astype(np.float32) * np.float32(scale))
    np.testing.assert_allclose(x.grad.numpy(), dx, rtol=1e-3, atol=1e-4)
    assert 0 < (dx == 0).mean() < 0.5
    assert quantizer.scale.grad.item() == pytest.approx(dscale / np.sqrt(500 * spec.grid.qmax), rel=1e-3)


def test_stochastic_rounding_is_right_on_average_and_never_further_than_a_step() -> None:
    v = torch.tensor([-3.75, -0.5, 0.1, 2.0, 6.9])
    drawn = Stochastic()(v.expand(40_000, 5))
    assert torch.equal(drawn, drawn.round())
    assert ((drawn - v).abs() < 1).all()
    np.testing.assert_allclose(drawn.mean(dim=0).numpy(), v.numpy(), atol=0.01)
    assert torch.equal(drawn[:, 3], torch.full((40_000,), 2.0))


def test_stochastic_rounding_stays_on_the_grid_and_ends_with_training() -> None:
    quantizer = LSQ(QuantSpec(Grid(2, narrow=True)), estimator=Stochastic())
    quantizer.set_range(torch.tensor([-1.0]), torch.tensor([1.0]))
    x = torch.full((1000, 1), 0.25)
    assert 150 < quantizer(x).sum() < 350
    assert not quantizer.quantize(x).any()
    assert not quantizer.eval()(x).any()
    assert set(quantizer.train()(torch.randn(1000, 1) * 5).unique().tolist()) == {-1.0, 0.0, 1.0}


def test_an_estimator_is_chosen_apart_from_the_quantizer() -> None:
    part = {"_target_": "qat.quantizers.PACT", "estimator": {"_target_": "qat.estimators.EWGS", "delta": 0.01}}
    rule = TensorRule(4, quantizer=part)
    first, second = rule.build(), rule.build()
    assert isinstance(first, PACT)
    assert isinstance(first.estimator, EWGS)
    assert first.estimator.delta == 0.01
    assert first.estimator is not second.estimator
    assert isinstance(TensorRule(4, quantizer={"_target_": "LSQ", "estimator": "DSQ"}).build().estimator, DSQ)
    assert isinstance(TensorRule(4).build().estimator, StraightThrough)


def test_impossible_values_and_names_are_refused() -> None:
    with pytest.raises(ValueError, match=r"EWGS with delta=3: write a number from 0"):
        EWGS(3)
    with pytest.raises(ValueError, match=r"DSQ with alpha=1.0: write a number between 0"):
        DSQ(1.0)
    with pytest.raises(ValueError, match=r"'EWGSS' is not an estimator: write one of DSQ, EWGS"):
        TensorRule(4, quantizer={"_target_": "LSQ", "estimator": "EWGSS"})
