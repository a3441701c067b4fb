"""Adam steps learned scales in proportion to their size, SGD as it always did."""

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import qat
from qat.training.optimization.parameter_groups import split_parameter_groups

SMALL = 4e-4  # of an 8-bit weight with a standard deviation of 0.02


def prepared(std: float = 0.02) -> nn.Module:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Embedding(10, 16), nn.Linear(16, 3))
    nn.init.normal_(network[0].weight, std=std)
    ids = torch.arange(10)
    quantized = qat.prepare(network, "w8a8", ids)
    qat.calibrate(quantized, [ids])
    return quantized


def scale_of(network: nn.Module) -> Tensor:
    return network.get_parameter("0.weight_quantizer.scale")


def steps(network: nn.Module, make: Any, n: int) -> None:
    with split_parameter_groups(network, 1.0):
        optimizer = make(network.parameters())
    for _ in range(n):
        optimizer.zero_grad()
        (network(torch.arange(10)) - 1).square().mean().backward()
        optimizer.step()


RATES = {"Adam": 1e-3, "AdamW": 1e-3, "NAdam": 1e-3, "RMSprop": 1e-3, "Adagrad": 1e-3, "Adadelta": 0.2}
"""Optimizer -> a learning rate with which it moves a parameter by about 1e-3 in a step, whatever the gradient."""


@pytest.mark.parametrize("kind", RATES)
def test_a_small_scale_moves_by_the_learning_rate_times_its_size(kind: str) -> None:
    network = prepared()
    before = scale_of(network).detach().clone()
    assert before.max() < 2 * SMALL
    steps(network, partial(getattr(torch.optim, kind), lr=RATES[kind]), 20)
    change = (scale_of(network) / before).log().abs()
    assert change.max() > 1e-3  # they learn
    assert change.max() < 0.25  # at most about 20 steps of 1e-3 (RMSprop's first are 10 times as long)
    assert (scale_of(network) > 0).all()


def test_the_first_step_of_adam_is_the_learning_rate_on_the_logarithm() -> None:
    network = prepared()
    before = scale_of(network).detach().clone()
    steps(network, partial(torch.optim.Adam, lr=1e-2, eps=0), 1)
    gradient = scale_of(network).grad
    assert gradient is not None
    torch.testing.assert_close(scale_of(network).detach(), before * torch.exp(-1e-2 * gradient.sign()))


def test_sgd_steps_scales_as_ever() -> None:
    network = prepared(std=1.0)
    before = scale_of(network).detach().clone()
    steps(network, partial(torch.optim.SGD, lr=0.1), 1)
    gradient = scale_of(network).grad
    assert gradient is not None
    torch.testing.assert_close(scale_of(network).detach(), before - 0.1 * gradient)


def test_wide_weights_cannot_lose_more_than_half_their_range() -> None:
    """Plain Adam, in a loop of the user's own, which knows nothing of groups."""
    network = prepared()
    quantizer = network.get_submodule("0.weight_quantizer")
    first = quantizer.qparams().scale.clone()
    with torch.no_grad():
        scale_of(network).fill_(1e-9)
    torch.testing.assert_close(quantizer.qparams().scale, first / 2)
    narrow = qat.prepare(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2)), "w4a8")
    qat.calibrate(narrow, [torch.randn(8, 4)])
    with torch.no_grad():
        narrow.get_parameter("1.weight_quantizer.scale").fill_(1e-9)
    assert (narrow.get_submodule("1.weight_quantizer").qparams().scale < 1e-3).all()
