"""Gradient penalties: the backward passes are differentiated again, and compared with the estimators composed of torch
operations, whose second derivatives torch finds itself."""

import sys
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import qat
from qat.estimators import DSQ, EWGS, StraightThrough
from qat.functional import clip_and_round, fake_quantize, look_up, scale_gradient


def rounded(v: Tensor) -> Tensor:
    """Straight-through rounding."""
    return v + (torch.round(v) - v).detach()


def composed(x: Tensor, lo: Tensor, hi: Tensor, scale: Tensor) -> Tensor:
    clipped = torch.where(x >= hi, hi, torch.where(x <= lo, lo, x))
    return rounded(clipped / scale) * scale


def penalty(function: Callable[..., Tensor], *inputs: Tensor) -> list[Tensor]:
    """First gradients, and those of their squares, also for the weights of the loss."""
    leaves = [t.clone().requires_grad_() for t in inputs]
    weights = torch.linspace(-1, 1, 40).reshape(8, 5).requires_grad_()
    loss = (function(*leaves) * weights).sin().sum()
    first = torch.autograd.grad(loss, leaves, create_graph=True)
    second = torch.autograd.grad(sum(g.square().sum() for g in first), [*leaves, weights])
    return [*(g.detach() for g in first), *second]


@pytest.mark.parametrize("half_open", [False, True], ids=["leaf", "saved as bytes"])
def test_fake_quantize(half_open: bool) -> None:
    x, scale = torch.randn(8, 5), torch.tensor(0.3)

    def ours(x: Tensor, scale: Tensor) -> Tensor:
        return fake_quantize(x * 1.5 if half_open else x, scale, 0, -4, 3, 0.5)

    def reference(x: Tensor, scale: Tensor) -> Tensor:
        s = scale_gradient(scale, 0.5)
        return composed(x * 1.5 if half_open else x, -4 * s, 3 * s, s)

    tolerance = 0.02 if half_open else 1e-5  # a byte holds the rounding error
    torch.testing.assert_close(penalty(ours, x, scale), penalty(reference, x, scale), atol=tolerance, rtol=1e-3)


def test_clip_and_round_with_learned_bounds() -> None:
    x, scale = torch.randn(8, 5), torch.full((8, 1), 0.3)
    tensors = (x, -4 * scale, 3 * scale, scale)
    ours = penalty(lambda *t: clip_and_round(*t, StraightThrough()), *tensors)
    torch.testing.assert_close(ours, penalty(composed, *tensors))


@pytest.mark.parametrize("estimator", [EWGS(0.5), DSQ(0.3)], ids=lambda e: type(e).__name__)
def test_the_gradient_of_an_estimator_is_linear_in_what_comes_in(estimator) -> None:
    x, scale = torch.randn(8, 5), torch.tensor(0.3)
    y = clip_and_round(x.requires_grad_(), -4 * scale, 3 * scale, scale, estimator)
    g = torch.randn(8, 5)
    plain = torch.autograd.grad(y, x, g, retain_graph=True)[0]
    recorded = torch.autograd.grad(y, x, g.requires_grad_(), create_graph=True)[0]
    torch.testing.assert_close(recorded, plain, atol=1e-4, rtol=1e-3)
    slopes = torch.autograd.grad(recorded.sum(), g)[0]
    torch.testing.assert_close(slopes * g, plain, atol=1e-4, rtol=1e-3)


def test_look_up() -> None:
    x, scale, values = torch.randn(8, 5), torch.tensor([0.3]), torch.linspace(-1, 2, 8)
    slopes = torch.linspace(0.5, 1.5, 8)

    def reference(x: Tensor, values: Tensor) -> Tensor:
        codes = (torch.round(x / scale).clamp(-4, 3) + 4).long()
        line = slopes[codes] * x
        return values[codes] + line - line.detach()

    ours = penalty(lambda x, values: look_up(x, scale, -4, 3, values, slopes), x, values)
    torch.testing.assert_close(ours, penalty(reference, x, values), atol=1e-5, rtol=1e-4)


def test_a_gradient_penalty_trains_a_network_as_the_composed_one(monkeypatch: pytest.MonkeyPatch) -> None:
    network = nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Conv2d(4, 3, 3))
    images = torch.randn(4, 2, 8, 8)
    prepared = qat.prepare(network, "w8a8")
    qat.calibrate(prepared, [images])

    def gradients() -> list[Tensor]:
        prepared.zero_grad()
        x = images.clone().requires_grad_()
        (dx,) = torch.autograd.grad(prepared(x).square().sum(), x, create_graph=True)
        dx.square().sum().backward()
        return [p.grad.clone() for p in prepared.parameters() if p.grad is not None and p.ndim > 1]

    compiled = gradients()
    module = sys.modules["qat.kernels.fake_quantize"]  # the package has a function of this name
    monkeypatch.setattr(module, "uses_native_by_rows", lambda *_: False)
    assert all(g.abs().max() > 0 for g in compiled)
    torch.testing.assert_close(compiled, gradients(), rtol=1e-3, atol=1e-2)
