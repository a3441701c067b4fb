"""A training that diverged is called that, and not a file that is wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import qat
from qat.training.callbacks import ExportONNX
from qat.training.comparison.divergence import divergence
from tests.training.callbacks.comparison_fits import fit
from tests.training.user_modules import LIGHTNING, Classifier

pytestmark = [
    *LIGHTNING,
    pytest.mark.filterwarnings("ignore:.*the learned scale", "ignore:The integer model does not"),
]


class LosesNumbers(Classifier):
    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        return super().training_step(batch, batch_idx) * torch.nan


class Explodes(Classifier):
    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=1000.0)


def test_weights_that_are_no_numbers_are_named(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError,
        match=r"^The training diverged: the loss is not finite .* holds NaN or infinity: lower the learning rate",
    ):
        fit(LosesNumbers(), tmp_path, ("qat", "export"))
    assert not [*tmp_path.rglob("*.onnx")]


def test_weights_that_exploded_are_named_before_the_file(tmp_path: Path) -> None:
    model = Explodes()
    torch.manual_seed(1)  # an order in which the last weights cannot be rounded to codes
    with pytest.raises(
        qat.export.VerificationError, match=r"The training diverged, \S+ is [\d,]+ times as large .*: lower"
    ):
        fit(model, tmp_path, ("qat", "export"))
    assert [path.name for path in tmp_path.rglob("*.onnx")] == ["model.unverified.onnx"]


def test_a_network_that_cannot_be_written_any_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: Any) -> None:
        raise ValueError("the file is refused")

    monkeypatch.setattr(ExportONNX, "_try_export", lambda *_: None)
    monkeypatch.setattr(qat.export.Target, "write", refused)
    with pytest.raises(ValueError, match="The training diverged"):
        fit(Explodes(), tmp_path, ("qat", "export"))


def test_what_trained_well_did_not_diverge() -> None:
    before, after = nn.Linear(4, 4), nn.Linear(4, 4)
    assert divergence(after, before) == divergence(after, None) == ""
    nn.init.zeros_(before.weight)
    assert divergence(after, before) == ""  # from nothing everything grows
