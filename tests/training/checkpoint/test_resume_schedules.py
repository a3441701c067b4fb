"""Schedules over a fit go on, wherever it was interrupted, as if it had not been: the same bits."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from qat.training.callbacks import Freeze, ProgressiveBits, QuantizationAwareTraining
from tests.training.checkpoint.interrupted import Everywhere, Fit, differences, own_generator
from tests.training.user_modules import LIGHTNING, images

pytestmark = [*LIGHTNING, pytest.mark.filterwarnings("ignore:ReduceLROnPlateau conditioned on metric")]

BY_STEPS = {"epochs": -1, "max_steps": 12, "val_check_interval": 4}


@pytest.mark.parametrize("length", [{}, BY_STEPS], ids=["epochs", "steps"])
def test_what_is_frozen_stays_frozen(length: dict[str, Any], tmp_path: Path) -> None:
    def fit(*callbacks: Any, seed: int = 0) -> Fit:
        freeze = Freeze(batch_norm=0.3, scales=0.6)
        return Fit(tmp_path, own_generator, seed=seed, callbacks=[freeze, *callbacks], **length)

    end = fit(Everywhere(tmp_path)).run().end()
    for path in sorted(tmp_path.glob("*.ckpt"))[1::4]:
        assert differences(end, fit(seed=99).run(path).end()) == [], path.name


class Apart(Fit):
    """With Adam for the scales, beside SGD and a schedule that watches what is logged."""

    def __init__(self, folder: Path, **options: Any) -> None:
        super().__init__(folder, own_generator, **options)
        qat = QuantizationAwareTraining(
            "w4a8", batches=[images(16).tensors[0]], quantizer_optimizer=partial(torch.optim.Adam, lr=1e-4)
        )
        callbacks: list[Any] = self.trainer.callbacks  # type: ignore[attr-defined]
        callbacks[callbacks.index(self.qat)] = qat


def test_an_optimizer_for_scales_goes_on_with_its_state(tmp_path: Path) -> None:
    end = Apart(tmp_path, callbacks=[Everywhere(tmp_path)]).run().end()
    assert {"exp_avg", "momentum_buffer"} <= {key for s in end["optimizers"][0]["state"].values() for key in s}
    for path in sorted(tmp_path.glob("*.ckpt"))[1::4]:
        assert differences(end, Apart(tmp_path, seed=99).run(path).end()) == [], path.name


@pytest.mark.parametrize("length", [{}, BY_STEPS], ids=["epochs", "steps"])
def test_stages_of_bits_go_on_and_the_best_is_the_same(length: dict[str, Any], tmp_path: Path) -> None:
    def fit(folder: str, *callbacks: Any, seed: int = 0) -> tuple[Fit, ModelCheckpoint]:
        best = ModelCheckpoint(tmp_path / folder, "best", monitor="val/top1", mode="max", every_n_train_steps=1)
        stages = ProgressiveBits({0.0: 32, 0.2: 8, 0.7: 4})
        return Fit(tmp_path, own_generator, seed=seed, callbacks=[stages, best, *callbacks], **length), best

    whole, best = fit("whole", Everywhere(tmp_path))
    end = whole.run().end()
    paths = sorted(tmp_path.glob("*.ckpt"))
    stages = [torch.load(path, weights_only=True)["qat"]["bits"] for path in paths]
    some = [stages.index(32), stages.index(8), stages.index(None) - 1, stages.index(None), stages.index(None) + 1]
    for path in [paths[i] for i in some]:
        resumed, again = fit(f"from_{path.stem}", seed=99)
        assert differences(end, resumed.run(path).end()) == [], path.name
        assert again.best_model_score == best.best_model_score, path.name
