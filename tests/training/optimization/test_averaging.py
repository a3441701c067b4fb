"""Averages of weights: EMA and SWA of Lightning, and copies that a LightningModule keeps."""

from __future__ import annotations

import copy
import itertools
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import EMAWeightAveraging, StochasticWeightAveraging, WeightAveraging
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from qat.quantizers import LSQ
from qat.training.callbacks import QuantizationAwareTraining
from qat.training.optimization.learning_rate_callbacks import scale_swa_learning_rates
from qat.training.optimization.scale_optimizer import QUANTIZER_GROUP
from qat.transform import load_policy, quantizers
from tests.training.user_modules import LIGHTNING, Classifier, Data, trainer

pytestmark = [
    *LIGHTNING,
    pytest.mark.filterwarnings("ignore:You're using the WeightAveraging callback, but loading a checkpoint outside"),
    pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`, callbacks used to create the checkpoint"),
]

QUICK = load_policy("w4a4").with_parts("LSQ", "MinMax")
"""Calibrates quickly."""

AFFINE = {
    "preset": "w4a4",
    "weight": {"observer": "MinMax"},
    "activation": {"symmetric": False, "observer": "MinMax"},
    "residual_bits": None,
}
"""Zero-points other than 0, so that the test notices if they are averaged."""


def qat(policy: Any = QUICK, **options: Any) -> QuantizationAwareTraining:
    return QuantizationAwareTraining(policy, **{"quantizer_lr_ratio": 0.01, "calibration_images": 64, **options})


def snapshot(module: torch.nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


class Recorder(L.Callback):
    """Records the state after calibration, after each optimizer step and in each validation batch."""

    def __init__(self) -> None:
        self.steps: list[dict[str, Tensor]] = []
        self.validated: list[dict[str, Tensor]] = []

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.start = snapshot(pl_module)

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        self.steps.append(snapshot(pl_module))

    def on_validation_batch_start(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        self.validated.append(snapshot(pl_module))


def fit(tmp_path: Path, *callbacks: L.Callback, **options: Any) -> tuple[Classifier, L.Trainer]:
    torch.manual_seed(0)
    model = Classifier()
    fitting = trainer(tmp_path, *callbacks, **options)
    fitting.fit(model, datamodule=Data())
    return model, fitting


AVERAGES = {
    "EMA": lambda: EMAWeightAveraging(decay=0.9),
    "EMA of parameters": lambda: EMAWeightAveraging(decay=0.9, use_buffers=False),
    "EMA, foreach": lambda: WeightAveraging(multi_avg_fn=get_ema_multi_avg_fn(0.9)),
    "mean": lambda: WeightAveraging(),
}


@pytest.mark.parametrize(("kind", "first"), [*((kind, False) for kind in AVERAGES), ("EMA", True)])
def test_an_average_averages_the_steps_and_copies_integers(kind: str, first: bool, tmp_path: Path) -> None:
    average, recorder = AVERAGES[kind](), Recorder()
    callbacks = [qat(AFFINE), average] if first else [average, qat(AFFINE)]
    model, _ = fit(tmp_path, *callbacks, recorder)
    assert len(recorder.steps) == 4
    for name, value in model.state_dict().items():
        history = [state[name] for state in recorder.steps]
        if not value.is_floating_point():
            assert torch.equal(value, history[-1]), name
        elif kind == "mean":
            torch.testing.assert_close(value, torch.stack(history).mean(0))
        elif kind == "EMA of parameters" and name.endswith(("running_mean", "running_var", "floor")):
            assert torch.equal(value, history[-1]), name
        else:
            expected = history[0]
            for step in history[1:]:
                expected = 0.9 * expected + 0.1 * step
            torch.testing.assert_close(value, expected)
    zero_points = [q.zero_point for q in quantizers(model).values()]
    assert any(bool(z.any()) for z in zero_points)
    scales = [n for n in model.state_dict() if n.endswith("scale")]
    assert any(not torch.equal(recorder.steps[0][n], recorder.steps[-1][n]) for n in scales)


def test_a_zero_point_would_lose_a_step_if_it_were_averaged() -> None:
    """Why integers are copied: the average is truncated."""
    zero_point = torch.tensor(3, dtype=torch.int32)
    averaged = zero_point.clone().copy_(0.9 * zero_point + (1 - 0.9) * zero_point)
    assert int(averaged) == 2


@pytest.mark.parametrize("first", [True, False], ids=["qat first", "qat last"])
def test_before_its_first_update_an_average_is_the_calibrated_network(first: bool, tmp_path: Path) -> None:
    average, recorder = EMAWeightAveraging(update_starting_at_step=100), Recorder()
    callbacks = [qat(), average] if first else [average, qat()]
    fit(tmp_path, *callbacks, recorder, num_sanity_val_steps=1)
    assert len(recorder.validated) == 3  # one of the sanity check
    for state in recorder.validated:
        assert all(torch.equal(state[name], value) for name, value in recorder.start.items())
    assert not torch.equal(recorder.steps[-1]["net.conv2.weight"], recorder.start["net.conv2.weight"])


def test_a_checkpoint_of_an_average_is_tested_and_resumed(tmp_path: Path) -> None:
    average = EMAWeightAveraging(decay=0.9)
    recorder = Recorder()

    class Saving(L.Callback):
        def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
            trainer.save_checkpoint(tmp_path / "ema.ckpt")

    model, fitting = fit(tmp_path, average, qat(), recorder, Saving())
    expected = fitting.test(model, datamodule=Data(), verbose=False)
    fresh = Classifier()
    testing = trainer(tmp_path, qat())
    assert testing.test(fresh, datamodule=Data(), ckpt_path=tmp_path / "ema.ckpt", verbose=False) == expected
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in fresh.state_dict().items())

    again, start = EMAWeightAveraging(decay=0.9), Recorder()
    resumed = trainer(tmp_path, again, qat(batches=[]), start, epochs=2)
    resumed.fit(Classifier(), datamodule=Data(), ckpt_path=tmp_path / "ema.ckpt", weights_only=True)
    assert all(torch.equal(value, recorder.steps[-1][name]) for name, value in start.start.items())


@pytest.mark.parametrize("rates", [0.05, [0.05, 0.02]])
def test_swa_rates_of_a_second_fit_are_those_of_the_first(rates: Any) -> None:
    parameters = [nn.Parameter(torch.ones(1)) for _ in range(4)]
    groups: list[dict[str, Any]] = [{"params": [p]} for p in parameters]
    for group in groups[1::2]:
        group[QUANTIZER_GROUP] = True
    swa = StochasticWeightAveraging(rates)
    fitting = SimpleNamespace(callbacks=[swa], optimizers=[torch.optim.SGD(groups, 0.1)])
    found = []
    for _ in range(2):
        scale_swa_learning_rates(fitting, 0.1)
        found.append(swa._swa_lrs)
    assert found[0] == found[1] == pytest.approx([0.05, 0.005, *((0.05, 0.005) if rates == 0.05 else (0.02, 0.002))])


@pytest.mark.parametrize(("rates", "first"), [(0.01, False), ([0.01], True)], ids=["qat last", "qat first, rates"])
def test_swa_ends_with_the_average_of_its_epochs(rates: Any, first: bool, tmp_path: Path) -> None:
    epochs: list[dict[str, Tensor]] = []

    class Epochs(L.Callback):
        def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
            epochs.append(snapshot(pl_module))
            self.rates = [group["lr"] for group in trainer.optimizers[0].param_groups]

    swa = StochasticWeightAveraging(rates, swa_epoch_start=2, annealing_epochs=1)
    callbacks = [qat(), swa] if first else [swa, qat()]
    seen = Epochs()
    model, fitting = fit(tmp_path, *callbacks, seen, epochs=4)
    assert len(epochs) == 5  # the last one is for BatchNorm alone
    assert fitting.optimizers[0].param_groups[1]["swa_lr"] == pytest.approx(0.0001)
    learned = [name for name, parameter in model.named_parameters()]
    for name, value in model.state_dict().items():
        if name in learned:  # epochs 1, 2, 3 begin with what is averaged
            torch.testing.assert_close(value, torch.stack([state[name] for state in epochs[1:4]]).mean(0))
        elif ".running_" not in name and not name.endswith("num_batches_tracked"):
            assert torch.equal(value, epochs[-1][name]), name
    assert all(q.ready for q in quantizers(model).values())


def test_a_mean_teacher_that_was_copied_in_setup_gets_the_ranges(tmp_path: Path) -> None:
    class MeanTeacher(Classifier):
        def setup(self, stage: str) -> None:
            self.teacher = copy.deepcopy(self.net).requires_grad_(False)

        def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
            with torch.no_grad():
                target = self.teacher(batch[0]).softmax(1)
            return torch.nn.functional.cross_entropy(self(batch[0]), target)

    model = MeanTeacher()
    before: dict[str, Tensor] = {}

    class Start(L.Callback):
        def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
            before.update(snapshot(pl_module))

    trainer(tmp_path, qat(network="net"), Start()).fit(model, datamodule=Data())
    pairs = itertools.product(["scale", "zero_point", "initialized", "floor"], quantizers(model.net))
    for what, name in pairs:
        assert torch.equal(before[f"teacher.{name}.{what}"], before[f"net.{name}.{what}"])
    assert all(isinstance(q, LSQ) and q.ready for q in quantizers(model.teacher).values())
