"""Fits, validations and tests as people run them, without any code for quantization."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import BatchSizeFinder, EarlyStopping, LearningRateFinder, ModelCheckpoint
from lightning.pytorch.tuner import Tuner
from torch import Tensor, nn
from torch.utils.data import DataLoader

from qat.quantizers import LSQ, Mode
from qat.training.callbacks import PTQBaselines, QuantizationAwareTraining
from qat.transform import is_prepared, load_policy, quantizers
from tests.training.user_modules import LIGHTNING, Classifier, Data, Manual, Net, images, trainer

pytestmark = LIGHTNING

RATIO = 0.01
"""Slow scales: these networks are untrained and tiny, and theirs would run away."""


QUICK = load_policy("w4a4").with_parts("LSQ", "MinMax")
"""Calibrates quickly."""


class NeverRead:
    """Calibration data that must not be read."""

    def __iter__(self) -> Iterator[Tensor]:
        pytest.fail("a network with ranges was calibrated again")
        yield


def qat(policy: Any = QUICK, **options: Any) -> QuantizationAwareTraining:
    return QuantizationAwareTraining(policy, **{"quantizer_lr_ratio": RATIO, "calibration_images": 64, **options})


def snapshot(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


def scales(module: nn.Module) -> dict[str, Tensor]:
    return {name: q.qparams().scale.clone() for name, q in quantizers(module).items()}


def equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


class RecordStart(L.Callback):
    """Records the module right before the first step."""

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.state, self.scales = snapshot(pl_module), scales(pl_module)
        self.rates = [[group["lr"] for group in optimizer.param_groups] for optimizer in trainer.optimizers]


# Once and again ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["same trainer", "same callback", "new callback"])
def test_a_second_fit_continues_with_what_was_learned(way: str, tmp_path: Path) -> None:
    model, start = Classifier(), RecordStart()
    callback = qat()
    first = trainer(tmp_path, callback, start)
    first.fit(model, datamodule=Data())
    learned, names = snapshot(model), set(model.state_dict())
    if way == "new callback":
        callback = qat()
    callback.batches = NeverRead()
    if way == "same trainer":
        first.fit_loop.max_epochs = 2
        second = first
    else:
        second = trainer(tmp_path, callback, start)
    second.fit(model, datamodule=Data())
    assert equal(start.state, learned)
    assert set(model.state_dict()) == names
    assert start.rates == [[0.01, pytest.approx(0.01 * RATIO)]]
    assert not equal(scales(model), start.scales)
    assert vars(model).keys().isdisjoint({"configure_optimizers", "on_load_checkpoint", "configure_model"})


@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`, callbacks used to create the checkpoint")
def test_checkpoints_best_and_last_are_tested_after_the_fit(tmp_path: Path) -> None:
    checkpoint = ModelCheckpoint(tmp_path / "kept", filename="best", monitor="val/top1", mode="max", save_last=True)
    fitting = trainer(tmp_path, qat(), checkpoint, epochs=2, enable_checkpointing=True)
    model = Classifier()
    fitting.fit(model, datamodule=Data())
    for which, path in (("best", checkpoint.best_model_path), ("last", checkpoint.last_model_path)):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.fill_(1.0)
        fitting.test(model, datamodule=Data(), ckpt_path=which, verbose=False, weights_only=True)
        saved = torch.load(path, weights_only=True)["state_dict"]
        assert equal(snapshot(model), saved)
        fresh = Classifier()
        trainer(tmp_path, qat()).test(fresh, datamodule=Data(), ckpt_path=path, verbose=False, weights_only=True)
        assert equal(snapshot(fresh), saved)


def test_early_stopping_ends_the_fit_and_its_checkpoint_can_be_resumed(tmp_path: Path) -> None:
    class Stuck(Classifier):
        def validation_step(self, batch: Any, batch_idx: int) -> None:
            self.log("val/loss", 1.0)

    stopping = EarlyStopping("val/loss", patience=1)
    fitting = trainer(tmp_path, qat(), stopping, epochs=9)
    fitting.fit(Stuck(), datamodule=Data())
    assert fitting.current_epoch == 2
    fitting.save_checkpoint(tmp_path / "stopped.ckpt")
    again = trainer(tmp_path, qat(batches=NeverRead()), EarlyStopping("val/loss", patience=3), epochs=9)
    with pytest.warns(UserWarning, match="EarlyStopping of 'val/loss' had ended it"):
        again.fit(Stuck(), datamodule=Data(), ckpt_path=tmp_path / "stopped.ckpt", weights_only=True)
    assert again.current_epoch > 2


# Before the first fit ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stage", ["validate", "test", "predict"])
def test_before_the_first_fit_the_float_network_is_measured(stage: str, tmp_path: Path) -> None:
    model, callback = Classifier(), qat()
    model.predict_step = lambda batch, batch_idx: model(batch[0])  # type: ignore[method-assign, misc]
    loader = DataLoader(images(48, 2), 16)
    expected = getattr(trainer(tmp_path), stage)(model, loader)
    measuring = trainer(tmp_path, callback)
    with pytest.warns(UserWarning, match="no ranges before the first fit, .*: the float network is measured"):
        found = getattr(measuring, stage)(model, loader)
    if stage == "predict":
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    else:
        assert found == expected
    assert not any(q.ready for q in quantizers(model).values())
    assert all(q.mode is Mode.QUANTIZE for q in quantizers(model).values())


def test_a_validation_before_a_fit_does_not_change_the_fit(tmp_path: Path) -> None:
    found = []
    for validating in (False, True):
        torch.manual_seed(0)
        model, ptq = Classifier(), PTQBaselines(["MinMax"])
        fitting = trainer(tmp_path, qat(), ptq)
        if validating:
            with pytest.warns(UserWarning, match="the float network is measured"):
                fitting.validate(model, datamodule=Data(), verbose=False)
        torch.manual_seed(0)
        fitting.fit(model, datamodule=Data())
        found.append({**snapshot(model), **scales(ptq.networks["PTQ min-max"])})
    assert equal(*found)


def test_an_interrupted_validation_leaves_the_quantizers_on(tmp_path: Path) -> None:
    class Breaking(Classifier):
        def validation_step(self, batch: Any, batch_idx: int) -> None:
            raise OSError("unplugged")

    model = Breaking()
    with pytest.warns(UserWarning, match="float network is measured"), pytest.raises(OSError, match="unplugged"):
        trainer(tmp_path, qat()).validate(model, datamodule=Data())
    assert all(q.mode is Mode.QUANTIZE for q in quantizers(model).values())


# Optimization --------------------------------------------------------------------------------------------------------


class FrozenBatchNorm(Classifier):
    """BatchNorm in evaluation mode, so the gradient of a batch is the mean of the gradients of its parts."""

    def on_train_epoch_start(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()


def test_accumulated_gradients_are_those_of_the_whole_batch(tmp_path: Path) -> None:
    found = []
    for size, accumulate in ((32, 1), (8, 4)):
        model, start = FrozenBatchNorm(lr=0.1), RecordStart()
        loader = DataLoader(images(64), size)
        fitting = trainer(tmp_path, qat(), start, accumulate_grad_batches=accumulate)
        fitting.fit(model, loader)
        assert fitting.global_step == 2
        found.append({name: value - start.state[name] for name, value in snapshot(model).items() if "scale" in name})
    assert all(bool(moved.any()) for moved in found[0].values())
    for name, moved in found[0].items():
        torch.testing.assert_close(found[1][name], moved, rtol=1e-3, atol=1e-7)


class RecordGradients(L.Callback):
    """Records norm and greatest value of all gradients, those of the scales included, as the optimizer gets them."""

    def __init__(self) -> None:
        self.norms: list[float] = []
        self.greatest: list[float] = []

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        gradients = torch.cat([p.grad.flatten() for p in pl_module.parameters() if p.grad is not None])
        self.norms.append(float(gradients.norm()))
        self.greatest.append(float(gradients.abs().max()))
        self.scales = sum(q.scale.grad is not None for q in quantizers(pl_module).values())  # type: ignore[union-attr]


class ManualClipping(Manual):
    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        loss = F.cross_entropy(self(batch[0]), batch[1])
        for optimizer in self.optimizers():  # type: ignore[union-attr]
            optimizer.zero_grad()
        self.manual_backward(loss)
        for optimizer in self.optimizers():  # type: ignore[union-attr]
            self.clip_gradients(optimizer, gradient_clip_val=1e-3, gradient_clip_algorithm="value")
            optimizer.step()
        return loss


class OwnClipping(Classifier):
    def configure_gradient_clipping(self, optimizer: Any, *_: Any, **__: Any) -> None:
        self.clip_gradients(optimizer, gradient_clip_val=1e-3, gradient_clip_algorithm="value")


@pytest.mark.parametrize(
    ("kind", "options", "norm", "greatest"),
    [
        (Classifier, {"gradient_clip_val": 1e-2}, 1e-2, 1e-2),
        (Classifier, {"gradient_clip_val": 1e-3, "gradient_clip_algorithm": "value"}, 1.0, 1e-3),
        (OwnClipping, {}, 1.0, 1e-3),
        (ManualClipping, {}, 1.0, 1e-3),
    ],
    ids=["norm", "value", "configure_gradient_clipping", "manual"],
)
def test_clipping_includes_the_scales(
    kind: type[Classifier], options: dict[str, Any], norm: float, greatest: float, tmp_path: Path
) -> None:
    model, clipped = kind(), RecordGradients()
    trainer(tmp_path, qat(), clipped, **options).fit(model, datamodule=Data())
    assert clipped.scales == len(quantizers(model))
    assert len(clipped.norms) > 1
    assert max(clipped.norms) <= norm * 1.0001
    assert max(clipped.greatest) <= greatest * 1.0001


def test_two_optimizers_keep_their_schedules(tmp_path: Path) -> None:
    class Scheduled(Manual):
        def configure_optimizers(self) -> Any:
            optimizers = super().configure_optimizers()
            gammas = (0.5, 0.1)
            pairs = zip(optimizers, gammas, strict=True)
            return list(optimizers), [torch.optim.lr_scheduler.StepLR(o, 1, gamma) for o, gamma in pairs]

        def on_train_epoch_end(self) -> None:
            for scheduler in self.lr_schedulers():  # type: ignore[union-attr]
                scheduler.step()

    fitting = trainer(tmp_path, qat(), epochs=2)
    fitting.fit(Scheduled(), datamodule=Data())
    rates = [[group["lr"] for group in optimizer.param_groups] for optimizer in fitting.optimizers]
    assert rates == [[pytest.approx(r), pytest.approx(r * RATIO)] for r in (0.02 * 0.5**2, 0.01 * 0.1**2)]


def test_lbfgs_gets_its_one_group_and_its_closure(tmp_path: Path) -> None:
    class WithLBFGS(Classifier):
        def configure_optimizers(self) -> Any:
            return torch.optim.LBFGS(self.parameters(), lr=1e-3, max_iter=2)

    model, start = WithLBFGS(), RecordStart()
    fitting = trainer(tmp_path, qat(), start, limit_train_batches=1)
    fitting.fit(model, datamodule=Data())
    assert len(fitting.optimizers[0].param_groups) == 1
    assert not equal(scales(model), start.scales)


class Gan(L.LightningModule):
    """Two networks, two optimizers; only the generator is to be quantized."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.generator = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 64))
        self.critic = nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 1))
        self.automatic_optimization = False

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        of_generator, of_critic = self.optimizers()  # type: ignore[misc]
        noise = batch[0][:, 0, 0]
        for optimizer, sign in ((of_critic, 1.0), (of_generator, -1.0)):
            self.toggle_optimizer(optimizer)
            made = self.generator(noise).reshape(-1, 1, 8, 8)
            loss = sign * (self.critic(made).mean() - self.critic(batch[0]).mean())
            optimizer.zero_grad()
            self.manual_backward(loss)
            optimizer.step()
            self.untoggle_optimizer(optimizer)

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.generator.parameters(), 1e-3), torch.optim.Adam(self.critic.parameters(), 1e-3)


def test_only_the_named_one_of_two_networks_is_quantized(tmp_path: Path) -> None:
    model, start = Gan(), RecordStart()
    callback = qat("w8a8", network="generator", inputs=lambda batch: batch[0][:, 0, 0])
    trainer(tmp_path, callback, start).fit(model, DataLoader(images(64), 32))
    assert is_prepared(model.generator)
    assert not is_prepared(model.critic)
    assert [len(rates) for rates in start.rates] == [2, 1]
    moved = {name.split(".")[0] for name, value in snapshot(model).items() if not torch.equal(value, start.state[name])}
    assert moved == {"generator", "critic"}
    assert not equal(scales(model), start.scales)


def test_layers_that_are_built_in_configure_model_are_quantized(tmp_path: Path) -> None:
    class Late(Classifier):
        def __init__(self) -> None:
            super().__init__()
            self.net = None  # type: ignore[assignment]

        def configure_model(self) -> None:
            if self.net is None:
                self.net = Net()

    model = Late()
    fitting = trainer(tmp_path, qat(), epochs=2)
    fitting.fit(model, datamodule=Data())
    assert all(isinstance(q, LSQ) and q.ready for q in quantizers(model.net).values())
    assert len(quantizers(model.net)) > 4
    fitting.save_checkpoint(tmp_path / "late.ckpt")
    fresh = Late()
    trainer(tmp_path, qat()).test(fresh, datamodule=Data(), ckpt_path=tmp_path / "late.ckpt", verbose=False)
    assert equal(snapshot(fresh), snapshot(model))


# Tuners --------------------------------------------------------------------------------------------------------------


class Sized(Data):
    """Many small batches."""

    batch_size = 4

    def train_dataloader(self) -> DataLoader[Any]:
        return DataLoader(self.train, self.batch_size)


quiet_tuners = pytest.mark.filterwarnings("ignore:.*is in `eval` mode")


def find_rate(path: Path, model: Classifier, start: RecordStart) -> L.Trainer:
    finder = LearningRateFinder(1e-5, 1e-2, num_training_steps=20)
    fitting = trainer(path, finder, qat(), start)
    fitting.fit(model, datamodule=Sized())
    return fitting


def find_rate_first(path: Path, model: Classifier, start: RecordStart) -> L.Trainer:
    fitting = trainer(path, qat(), start)
    Tuner(fitting).lr_find(model, datamodule=Sized(), min_lr=1e-5, max_lr=1e-2, num_training=20)
    fitting.fit(model, datamodule=Data())
    return fitting


def find_size(path: Path, model: Classifier, start: RecordStart) -> L.Trainer:
    fitting = trainer(path, BatchSizeFinder(steps_per_trial=1, init_val=8, max_trials=2), qat(), start)
    fitting.fit(model, datamodule=Sized())
    return fitting


@quiet_tuners
@pytest.mark.parametrize("find", [find_rate, find_rate_first, find_size], ids=lambda f: f.__name__)
def test_trials_of_a_tuner_leave_no_trace(find: Callable[..., L.Trainer], tmp_path: Path) -> None:
    expected = RecordStart()
    torch.manual_seed(0)
    trainer(tmp_path, qat(), expected).fit(Classifier(), datamodule=Sized())
    start = RecordStart()
    torch.manual_seed(0)
    model = Classifier()
    fitting = find(tmp_path, model, start)
    assert equal(start.state, expected.state)
    assert all(q.ready for q in quantizers(model).values())
    [[rate, slow]] = start.rates
    assert rate == model.lr
    assert slow == pytest.approx(rate * RATIO)
    if find is not find_size:
        assert model.lr != 0.01
    assert fitting.current_epoch == 1
