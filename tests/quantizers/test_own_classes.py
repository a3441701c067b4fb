"""Observers and quantizers of a user's own that do not keep their promise are refused: none deploys what was not trained."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import qat
from qat.observers import MinMax
from qat.quantizers import LSQ, Static
from qat.spec import QParams


class Own(LSQ):
    """Changes nothing."""


class OtherScale(LSQ):
    def qparams(self) -> QParams:
        return QParams(2 * super().qparams().scale, self.zero_point)


class Unrounded(LSQ):
    def fake_quantize(self, x: Tensor) -> Tensor:
        return x


class Negative(Static):
    def qparams(self) -> QParams:
        return QParams(-super().qparams().scale, self.zero_point)


class FarZero(Static):
    def qparams(self) -> QParams:
        return QParams(super().qparams().scale, self.zero_point + 500)


class Pair(Static):
    def qparams(self) -> Any:
        return tuple(super().qparams())


class Swapped(MinMax):
    def range(self) -> tuple[Tensor, Tensor]:
        return super().range()[::-1]


class Shared(MinMax):
    """One range where each channel has its own."""

    def range(self) -> tuple[Tensor, Tensor]:
        lo, hi = super().range()
        return lo.min(), hi.max()


class Numbers(MinMax):
    def range(self) -> Any:
        return -1.0, 1.0


def converted(tensor: str, content: dict[str, Any]) -> nn.Module:
    torch.manual_seed(0)
    network, batch = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 4)), torch.randn(32, 6)
    prepared = qat.prepare(network, {"preset": "w8a8", tensor: content}, batch)
    qat.calibrate(prepared, [batch])
    return qat.convert(prepared)


@pytest.mark.parametrize("tensor", ["weight", "activation"])
@pytest.mark.parametrize(
    ("quantizer", "sentence"),
    [
        (OtherScale, "OtherScale of '.*' trains with .* and deploys .*: let fake_quantize.x. round as qparams.. says"),
        (Unrounded, "Unrounded of '.*' trains with"),
        (Negative, r"Negative.qparams\(\) of '.*' has a scale of -.*: write scales above 0."),
        (FarZero, r"FarZero.qparams\(\) of '.*' has a zero_point of .*: write whole numbers from"),
        (Pair, r"Pair.qparams\(\) of '.*' returned .*: write qat.spec.QParams"),
    ],
)
def test_a_quantizer_deploys_what_it_trains(tensor: str, quantizer: type, sentence: str) -> None:
    assert isinstance(converted(tensor, {"quantizer": Own})(torch.randn(2, 6)), Tensor)
    with pytest.raises(ValueError, match=sentence):
        converted(tensor, {"quantizer": quantizer})


@pytest.mark.parametrize("observer", [Swapped, Shared, Numbers])
def test_an_observer_finds_a_range(observer: type) -> None:
    with pytest.raises(
        ValueError, match=rf"cannot be calibrated: {observer.__name__}.range\(\) is not a range: return"
    ):
        converted("weight", {"observer": observer})
