"""Schedules over a fit end with the same bits, wherever the fit was interrupted."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import EMAWeightAveraging, ModelCheckpoint

from qat.training.callbacks import Freeze, ProgressiveBits, QuantizationAwareTraining
from tests.training.checkpoint.interrupted_fits import CheckpointInEveryHook, Fit, differences, loader_with_generator
from tests.training.user_modules import LIGHTNING, images

pytestmark = [*LIGHTNING, pytest.mark.filterwarnings("ignore:ReduceLROnPlateau conditioned on metric")]

BY_STEPS = {"epochs": -1, "max_steps": 12, "val_check_interval": 4}


@pytest.mark.parametrize("length", [pytest.param({}, marks=pytest.mark.slow), BY_STEPS], ids=["epochs", "steps"])
def test_frozen_statistics_and_scales_stay_frozen_in_a_resumed_fit(length: dict[str, Any], tmp_path: Path) -> None:
    def fit(*callbacks: Any, seed: int = 0) -> Fit:
        freeze = Freeze(batch_norm=0.3, scales=0.6)
        return Fit(tmp_path, loader_with_generator, seed=seed, callbacks=[freeze, *callbacks], **length)

    end = fit(CheckpointInEveryHook(tmp_path)).run().end()
    for path in sorted(tmp_path.glob("*.ckpt"))[1::4]:
        assert differences(end, fit(seed=99).run(path).end()) == [], path.name


class FitWithQuantizerOptimizer(Fit):
    """With Adam for the scales, beside SGD and a schedule that depends on what is logged."""

    def __init__(self, folder: Path, **options: Any) -> None:
        super().__init__(folder, loader_with_generator, **options)
        qat = QuantizationAwareTraining(
            "w4a8", batches=[images(16).tensors[0]], quantizer_optimizer=partial(torch.optim.Adam, lr=1e-4)
        )
        callbacks: list[Any] = self.trainer.callbacks  # type: ignore[attr-defined]
        callbacks[callbacks.index(self.qat)] = qat


def test_a_quantizer_optimizer_is_resumed_with_its_state(tmp_path: Path) -> None:
    end = FitWithQuantizerOptimizer(tmp_path, callbacks=[CheckpointInEveryHook(tmp_path)]).run().end()
    assert {"exp_avg", "momentum_buffer"} <= {key for s in end["optimizers"][0]["state"].values() for key in s}
    for path in sorted(tmp_path.glob("*.ckpt"))[1::4]:
        assert differences(end, FitWithQuantizerOptimizer(tmp_path, seed=99).run(path).end()) == [], path.name


@pytest.mark.parametrize("length", [pytest.param({}, marks=pytest.mark.slow), BY_STEPS], ids=["epochs", "steps"])
def test_stages_of_bits_and_the_best_score_are_resumed(length: dict[str, Any], tmp_path: Path) -> None:
    def fit(folder: str, *callbacks: Any, seed: int = 0) -> tuple[Fit, ModelCheckpoint]:
        best = ModelCheckpoint(tmp_path / folder, "best", monitor="val/top1", mode="max", every_n_train_steps=1)
        stages = ProgressiveBits({0.0: 32, 0.2: 8, 0.7: 4})
        return Fit(tmp_path, loader_with_generator, seed=seed, callbacks=[stages, best, *callbacks], **length), best

    whole, best = fit("whole", CheckpointInEveryHook(tmp_path))
    end = whole.run().end()
    paths = sorted(tmp_path.glob("*.ckpt"))
    stages = [torch.load(path, weights_only=True)["qat"]["bits"] for path in paths]
    some = [stages.index(32), stages.index(8), stages.index(None) - 1, stages.index(None), stages.index(None) + 1]
    for path in [paths[i] for i in some]:
        resumed, again = fit(f"from_{path.stem}", seed=99)
        assert differences(end, resumed.run(path).end()) == [], path.name
        assert again.best_model_score == best.best_model_score, path.name


@pytest.mark.filterwarnings("ignore:Found .* in eval mode")
def test_an_average_has_the_bits_of_the_checkpoint_before_the_next_stage(tmp_path: Path) -> None:
    def fit(*callbacks: Any, seed: int = 0) -> Fit:
        schedules = [EMAWeightAveraging(decay=0.9), ProgressiveBits({0.0: 8, 0.5: 4})]
        return Fit(tmp_path, loader_with_generator, seed=seed, epochs=2, callbacks=[*schedules, *callbacks])

    end = fit(CheckpointInEveryHook(tmp_path)).run().end()
    (path,) = tmp_path.glob("*_batch_2.ckpt")
    assert differences(end, fit(seed=99).run(path).end()) == []
