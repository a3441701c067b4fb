"""Data that are not finite and trainings that diverge end with one sentence, before anything else is trained."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from qat.training.callbacks import QuantizationAwareTraining, Report
from qat.training.lightning.lost_training import STEPS_BETWEEN_CHECKS, DivergedError, LostTraining
from qat.transform.batches import float_parts, is_usable
from tests.training.user_modules import LIGHTNING, Classifier, images, trainer

pytestmark = LIGHTNING


def broken(n: int, index: int, value: float) -> DataLoader[Any]:
    """Batches of 16, of which the sample `index` holds `value`."""
    x, y = (part.clone() for part in images(n).tensors)
    x[index, 0, 0, 0] = value
    return DataLoader(TensorDataset(x, y), 16)


class Logged(Classifier):
    def test_dataloader(self) -> DataLoader[Any]:
        return DataLoader(images(32), 16)


def quantization() -> QuantizationAwareTraining:
    return QuantizationAwareTraining("w8a8", batches=[images(16).tensors[0]])


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_a_training_batch_that_is_not_finite_is_named(value: float, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"Training batch 1 of epoch 1 \(step 2\) holds NaN or infinity: mend"):
        trainer(tmp_path, quantization()).fit(Classifier(), broken(48, 20, value))


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_test_batch_that_is_not_finite_is_named_before_the_training(value: float, tmp_path: Path) -> None:
    class Tested(Classifier):
        def test_dataloader(self) -> DataLoader[Any]:
            return broken(48, 40, value)

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            raise AssertionError("trained")

    with pytest.raises(ValueError, match="Test batch 2 holds NaN or infinity: mend these samples, or leave them out"):
        trainer(tmp_path, quantization(), Report(tmp_path)).fit(Tested(), DataLoader(images(32), 16))


def test_a_training_that_diverges_ends_and_is_reported(tmp_path: Path) -> None:
    sentence = (
        r"The training diverged: the loss is not finite since training batch \d of epoch 1 \(step \d\), and .* lower"
    )
    with pytest.raises(DivergedError, match=sentence):
        trainer(tmp_path, quantization(), Report(tmp_path)).fit(Logged(lr=1e30), DataLoader(images(128), 16))
    results = json.loads((tmp_path / "results.json").read_text())
    assert [row["name"] for row in results["rows"]] == ["float"]
    assert results["verdict"]["outcome"] == "diverged"
    assert results["verdict"]["text"].startswith(
        "NO VERDICT. The training diverged: the loss is not finite since training batch"
    )


class WithoutLoss(Logged):
    """Manual optimization that returns nothing, whose weights are lost in one step."""

    def __init__(self, lost_in: int) -> None:
        super().__init__()
        self.automatic_optimization, self.lost_in = False, lost_in

    def training_step(self, batch: Any, batch_idx: int) -> None:  # type: ignore[override]
        loss = super().training_step(batch, batch_idx)
        self.optimizers().zero_grad()  # type: ignore[union-attr]
        self.manual_backward(loss)
        self.optimizers().step()  # type: ignore[union-attr]
        if batch_idx == self.lost_in:
            with torch.no_grad():
                self.net.head.weight[0, 0] = torch.nan


@pytest.mark.parametrize(("batches", "lost_in", "ended"), [(8, 7, 8), (120, 3, STEPS_BETWEEN_CHECKS)])
def test_weights_that_are_lost_without_a_loss_are_found(batches: int, lost_in: int, ended: int, tmp_path: Path) -> None:
    """At the end of the epoch, or after some steps."""
    fitting = trainer(tmp_path, quantization(), Report(tmp_path), epochs=3)
    with pytest.raises(DivergedError, match=r"^The training diverged: \S+ holds NaN or infinity: lower the"):
        fitting.fit(WithoutLoss(lost_in), DataLoader(images(4 * batches), 4))
    assert fitting.global_step == ended
    assert json.loads((tmp_path / "results.json").read_text())["verdict"]["outcome"] == "diverged"


class LostInTheLastStep(Logged):
    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx == 1:
            with torch.no_grad():
                self.net.head.weight[0, 0] = torch.inf


def test_weights_that_the_last_step_lost_are_found(tmp_path: Path) -> None:
    """No later step has a loss that tells."""
    with pytest.raises(DivergedError, match=r"^The training diverged: \S+ holds NaN or infinity: lower the"):
        trainer(tmp_path, quantization(), Report(tmp_path)).fit(LostInTheLastStep(), DataLoader(images(32), 16))
    assert json.loads((tmp_path / "results.json").read_text())["verdict"]["outcome"] == "diverged"


def test_an_accelerator_is_not_waited_for_in_every_step(monkeypatch: pytest.MonkeyPatch) -> None:
    class Step:
        current_epoch, global_step = 0, 7

    checked: list[int] = []
    lost = LostTraining(None, lambda module: module)
    monkeypatch.setattr(lost, "_check", lambda module, weights: checked.append(len(lost._noted)))
    elsewhere = {"loss": torch.ones((), device="meta")}
    for index in range(STEPS_BETWEEN_CHECKS):
        lost.on_train_batch_end(Step(), Classifier(), elsewhere, None, index)  # type: ignore[arg-type]
    assert checked == [STEPS_BETWEEN_CHECKS]


def test_a_step_that_mixed_precision_skips_is_no_divergence() -> None:
    class Step:
        current_epoch, global_step = 0, 7

    lost, module = LostTraining(None, lambda module: module), Classifier()
    for loss in (torch.inf, 1.0):
        lost.on_train_batch_end(Step(), module, {"loss": torch.tensor(loss)}, None, 0)  # type: ignore[arg-type]


def test_masks_of_0_and_minus_infinity_are_usable() -> None:
    mask = torch.zeros(2, 2).masked_fill(torch.eye(2) > 0, -torch.inf)
    assert bool(is_usable(mask))
    assert not bool(is_usable(mask + 1))
    assert [name for name, _ in float_parts(({"x": mask, "ids": torch.ones(1, dtype=torch.long)}, [mask]))] == [
        "[0].x",
        "[1][0]",
    ]
