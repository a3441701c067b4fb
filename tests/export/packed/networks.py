"""Small networks whose weights reach their layers in different ways."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import qat


def convolutions() -> nn.Module:
    """Of torch.nn alone, so that a manifest says all."""
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=2), nn.ReLU(), nn.Flatten(),
        nn.Linear(128, 5),
    )  # fmt: skip


class Functional(nn.Module):
    """Weights of its own, one of them [in, out]."""

    def __init__(self) -> None:
        super().__init__()
        self.w, self.v = nn.Parameter(torch.randn(6, 4)), nn.Parameter(torch.randn(6, 3))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.w).relu() @ self.v


class Tied(nn.Module):
    """An embedding is the weight of the last layer, too."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.middle, self.head = nn.Embedding(40, 16), nn.Linear(16, 16), nn.Linear(16, 40, bias=False)
        self.head.weight = self.words.weight

    def forward(self, words: Tensor) -> Tensor:
        return self.head(self.middle(self.words(words)).tanh())


class Autoencoder(nn.Module):
    """The decoder has the encoder's weight, transposed."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(4, 6)), nn.Parameter(torch.randn(6))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(F.linear(x, self.weight).relu(), self.weight.t(), self.bias)


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.memory, self.head = nn.LSTM(8, 12, batch_first=True), nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.memory(x)[0])


class Branching(nn.Module):
    """Cannot be captured."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(8, 12), nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.first(x)
        return self.last(hidden.relu() if hidden.sum() > 0 else hidden.tanh())


def trained(model: nn.Module, policy: str | Mapping[str, Any], x: Any) -> nn.Module:
    """Prepared, calibrated, and two steps on."""
    prepared = qat.prepare(model.eval(), qat.load_policy(policy))
    qat.calibrate(prepared, [x])
    step(prepared, x, 2)
    prepared.eval()(x)  # some quantizers keep the scale of the weight that they saw last
    return prepared


def step(prepared: nn.Module, x: Any, steps: int = 1) -> None:
    optimizer = torch.optim.SGD(prepared.parameters(), 0.05)
    prepared.train()
    for _ in range(steps):
        optimizer.zero_grad()
        prepared(x).square().mean().backward()
        optimizer.step()


def weights_alone(bits: int, match: str = "*", **options: Any) -> dict[str, Any]:
    return {"rules": {"all": {"match": match, "weight": {"bits": bits, **options}, "activation": None}}}
