"""Dropout that forward calls in training alone is part of the prepared network, too."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import qat


class Layers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(6, 16), nn.Linear(16, 16), nn.Linear(16, 3)
        self.drop, self.p = nn.Dropout(0.3), 0.5


class Function(Layers):
    def forward(self, x: Tensor) -> Tensor:
        h = self.a(x).relu()
        if self.training and self.p > 0:
            h = F.dropout(h, self.p)
        y: Tensor = self.c(F.dropout(self.b(h).relu(), 0.2, self.training))
        return y


class Module(Layers):
    def forward(self, x: Tensor) -> Tensor:
        h = self.drop(self.a(x).relu())
        b = self.b(h)
        if self.training:
            b = self.drop(b)
        h = h + b
        y: Tensor = self.c(h)
        return y


class Twice(Layers):
    """The same tensor with dropout and without, and of two rates."""

    def forward(self, x: Tensor) -> Tensor:
        h = self.a(x).relu()
        dropped = F.dropout(F.dropout(h, p=0.1), 0.4) if self.training else h
        y: Tensor = self.c(torch.cat([dropped, h], -1)[..., 8:24] * self.b(dropped + h))
        return F.dropout(y, 0.25) if self.training else y


def gradients(model: nn.Module, x: Tensor) -> list[Tensor]:
    torch.manual_seed(3)
    y = model.train()(x)
    y.square().sum().backward()
    found = {n: p.grad for n, p in model.named_parameters() if "quantizer" not in n and not n.startswith("sites")}
    return [y.detach(), *(g for _, g in sorted(found.items()) if g is not None)]


@pytest.mark.parametrize("network", [Function, Module, Twice])
def test_training_is_that_of_the_float_network(network: type[Layers]) -> None:
    torch.manual_seed(0)
    x = torch.randn(32, 6)
    model = network().eval()
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # nothing is left out
        prepared = qat.prepare(model, "w8a8", x)
    with qat.mode(prepared, qat.Mode.OFF):
        assert torch.equal(prepared.eval()(x), model(x))
        for ours, theirs in zip(gradients(copy.deepcopy(prepared), x), gradients(copy.deepcopy(model), x), strict=True):
            torch.testing.assert_close(ours, theirs)
    qat.calibrate(prepared, [x])
    integer = qat.convert(prepared.eval())
    assert (integer(x) - prepared(x)).abs().max() < 0.05


class ReturnsWeights(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.attention = nn.Linear(6, 8), nn.MultiheadAttention(8, 2, dropout=0.3, batch_first=True)
        self.last = nn.Linear(8, 2)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h = F.dropout(self.first(x), 0.2, self.training)
        y, weights = self.attention(h, h, h)
        return self.last(h + y), weights


def test_attention_that_returns_its_weights_has_its_dropout() -> None:
    torch.manual_seed(0)
    x = torch.randn(4, 5, 6)
    model = ReturnsWeights().eval()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        prepared = qat.prepare(model, "w8a8", x)
    with qat.mode(prepared, qat.Mode.OFF), torch.no_grad():
        for training in (False, True):
            torch.manual_seed(1)
            expected = model.train(training)(x)
            torch.manual_seed(1)
            torch.testing.assert_close(prepared.train(training)(x), expected)
