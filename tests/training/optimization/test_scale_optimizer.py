"""The combined optimizer, compared with the same two optimizers stepped by hand."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import LearningRateFinder, LearningRateMonitor, StochasticWeightAveraging
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor, nn
from torch.optim import SGD, Adam, AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR

import qat
from qat.quantizers import LSQ
from qat.training.callbacks import QuantizationAwareTraining
from qat.training.optimization.parameter_groups import quantizer_parameters, split_parameter_groups
from qat.transform import quantizers
from tests.training.user_modules import LIGHTNING, Classifier, Data, Manual, Net, images, trainer

pytestmark = LIGHTNING

Make = Callable[..., Optimizer]
MOVING_SGD = partial(SGD, lr=0.05, momentum=0.9, weight_decay=1e-2)
PAIRS: dict[str, tuple[Make, Make]] = {
    "SGD and Adam": (MOVING_SGD, partial(Adam, lr=1e-3)),
    "AdamW and SGD": (partial(AdamW, lr=0.01), partial(SGD, lr=1e-3, momentum=0.9)),
    "Adam twice": (partial(Adam, lr=0.01), partial(Adam, lr=1e-4, betas=(0.5, 0.9))),
}
"""Optimizers of weights and of scales. Their states have different names, which must not be mixed up."""


def factor(step: int) -> float:
    return 0.5**step


def network() -> nn.Module:
    prepared = qat.prepare(Net(), "w4a4")
    qat.calibrate(prepared, [images(32).tensors[0]])
    return prepared


def gradients(model: nn.Module, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator)


def state(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def joined(model: nn.Module, weights: Make, scales: Make) -> Optimizer:
    with split_parameter_groups(model, 1.0, scales):
        return weights(model.parameters())


def by_hand(model: nn.Module, weights: Make, scales: Make) -> tuple[Optimizer, Optimizer]:
    learned = list(quantizer_parameters(model).values())
    own = {id(p) for p in learned}
    return weights([p for p in model.parameters() if id(p) not in own]), scales(learned)


@pytest.mark.parametrize(("weights", "scales"), PAIRS.values(), ids=PAIRS.keys())
def test_steps_are_those_of_the_two_optimizers(weights: Make, scales: Make) -> None:
    ours, theirs = network(), network()
    one, two = joined(ours, weights, scales), by_hand(theirs, weights, scales)
    schedules = [LambdaLR(optimizer, factor) for optimizer in (one, *two)]
    assert isinstance(one, type(two[0]))
    for step in range(4):
        gradients(ours, step)
        gradients(theirs, step)
        for optimizer in (one, *two):
            optimizer.step()
        for schedule in schedules:
            schedule.step()
    assert equal(state(ours), state(theirs))
    assert [g["lr"] for g in one.param_groups] == [o.param_groups[0]["lr"] for o in two]


@pytest.mark.parametrize(("weights", "scales"), PAIRS.values(), ids=PAIRS.keys())
def test_a_saved_state_is_resumed(weights: Make, scales: Make) -> None:
    whole = network()
    optimizer = joined(whole, weights, scales)
    for step in range(4):
        if step == 2:
            half, saved = copy.deepcopy(whole), copy.deepcopy(optimizer.state_dict())
        gradients(whole, step)
        optimizer.step()
    again = joined(half, *(partial(make, lr=7.0) for make in (weights, scales)))
    again.load_state_dict(saved)
    for step in (2, 3):
        gradients(half, step)
        again.step()
    assert equal(state(half), state(whole))


def test_a_closure_runs_once_and_its_loss_comes_back() -> None:
    model, calls = network(), []
    optimizer = joined(model, *PAIRS["SGD and Adam"])
    before = state(model)

    def closure() -> float:
        assert torch.is_grad_enabled()
        gradients(model, 0)
        calls.append(1)
        return 3.5

    assert optimizer.step(closure) == 3.5
    assert len(calls) == 1
    moved = {name for name, value in state(model).items() if not torch.equal(value, before[name])}
    assert moved == {name for name, _ in model.named_parameters()}


def test_hooks_of_the_optimizer_run_once() -> None:
    model, calls = network(), []
    optimizer = joined(model, *PAIRS["SGD and Adam"])
    optimizer.register_step_post_hook(lambda *_: calls.append(1))
    optimizer.load_state_dict(optimizer.state_dict())  # torch puts hooks around a class's step then
    gradients(model, 0)
    optimizer.step()
    assert len(calls) == 1


def test_a_grad_scaler_unscales_both_and_skips_both() -> None:
    ours, theirs = network(), network()
    one, two = joined(ours, *PAIRS["SGD and Adam"]), by_hand(theirs, *PAIRS["SGD and Adam"])
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    for overflows in (False, True):
        gradients(ours, 0)
        for parameter in ours.parameters():
            assert parameter.grad is not None
            parameter.grad *= float("inf") if overflows else 8.0
        scaler.scale(torch.ones(()))
        scaler.unscale_(one)
        scaler.step(one)
        scaler.update()
    gradients(theirs, 0)
    for optimizer in two:
        optimizer.step()
    assert equal(state(ours), state(theirs))


def test_scales_have_no_weight_decay_and_a_name() -> None:
    model = network()
    decayed = [p for p in model.parameters() if p.ndim > 1]
    rest = [p for p in model.parameters() if p.ndim <= 1]
    with split_parameter_groups(model, 1.0, partial(AdamW, lr=0.5, weight_decay=0.1)):
        optimizer = SGD([{"params": decayed, "name": "decayed"}, {"params": rest, "name": "rest"}], lr=2.0)
    found = [(g["name"], g["lr"], g["weight_decay"]) for g in optimizer.param_groups]
    assert found == [("decayed", 2.0, 0.0), ("rest", 2.0, 0.0), ("rest scales", 0.5, 0.0)]


# In a fit ------------------------------------------------------------------------------------------------------------


def callback(**options: Any) -> QuantizationAwareTraining:
    return QuantizationAwareTraining(
        "w4a4", batches=[images(32).tensors[0]], quantizer_optimizer=partial(Adam, lr=1e-4), **options
    )


class ByHand(Classifier):
    """The same fit with manual optimization, as people would write it without the option."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        loss = super().training_step(batch, batch_idx)
        optimizers: Any = self.optimizers()
        for optimizer in optimizers:
            optimizer.zero_grad()
        self.manual_backward(loss)
        torch.nn.utils.clip_grad_norm_(self.parameters(), 0.5)
        for optimizer in optimizers:
            optimizer.step()
        return loss

    def on_train_epoch_end(self) -> None:
        for scheduler in self.lr_schedulers():  # type: ignore[union-attr]
            scheduler.step()

    def configure_optimizers(self) -> Any:
        learned = list(quantizer_parameters(self).values())
        own = {id(p) for p in learned}
        weights = [p for p in self.parameters() if id(p) not in own]
        optimizers = SGD(weights, lr=self.lr, momentum=0.9, weight_decay=1e-3), SGD(learned, lr=1e-2)
        return list(optimizers), [torch.optim.lr_scheduler.StepLR(o, 1, 0.5) for o in optimizers]


def test_a_fit_is_the_one_with_two_optimizers_stepped_by_hand(tmp_path: Path) -> None:
    found = []
    batches = [images(32).tensors[0]]
    for model, qat_callback, options in (
        (
            Classifier(),
            QuantizationAwareTraining("w4a4", batches=batches, quantizer_optimizer=partial(SGD, lr=1e-2)),
            {"gradient_clip_val": 0.5},
        ),
        (ByHand(), QuantizationAwareTraining("w4a4", batches=batches), {}),
    ):
        torch.manual_seed(0)
        trainer(tmp_path, qat_callback, epochs=2, **options).fit(model, datamodule=Data())
        found.append(state(model))
    assert found[0].keys() == found[1].keys()
    for name, value in found[0].items():  # the norm that clips is summed in another order
        torch.testing.assert_close(found[1][name], value, rtol=1e-5, atol=1e-7, msg=name)


def test_several_optimizers_and_manual_optimization(tmp_path: Path) -> None:
    model, fitting = Manual(), trainer(tmp_path, callback())
    fitting.fit(model, datamodule=Data())
    assert [[g["lr"] for g in optimizer.param_groups] for optimizer in fitting.optimizers] == [
        [0.02, 1e-4],
        [0.01, 1e-4],
    ]
    learned = [q.scale for q in quantizers(model).values() if isinstance(q, LSQ)]
    states = [o.state[scale].keys() for scale in learned for o in fitting.optimizers if scale in o.state]
    assert len(states) == len(quantizers(model))
    assert all("exp_avg" in keys for keys in states)


def test_learning_rates_are_logged_by_name(tmp_path: Path) -> None:
    logger = CSVLogger(tmp_path, flush_logs_every_n_steps=1)
    monitor = LearningRateMonitor()
    trainer(tmp_path, callback(), monitor, logger=logger, log_every_n_steps=1).fit(Classifier(), datamodule=Data())
    assert monitor.lrs == {"lr-SGD/pg1": [0.01], "lr-SGD/scales": [1e-4]}


def test_without_learned_scales_there_is_one_optimizer(tmp_path: Path) -> None:
    static = qat.load_policy("w4a4").with_parts("Static", "MinMax")
    fitting = trainer(tmp_path, QuantizationAwareTraining(static, quantizer_optimizer=partial(Adam, lr=1e-4)))
    fitting.fit(Classifier(), datamodule=Data())
    assert len(fitting.optimizers[0].param_groups) == 1


# Refused -------------------------------------------------------------------------------------------------------------


def test_quantizer_lr_ratio_beside_a_quantizer_optimizer_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^quantizer_lr_ratio=0.1 beside a quantizer_optimizer, which has"):
        callback(quantizer_lr_ratio=0.1)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda _: None, r"makes no optimizer: write functools.partial\(torch.optim.Adam, lr=1e-3\)"),
        (
            partial(Adam, lr=-1.0),
            r"^quantizer_optimizer cannot be built \(Invalid learning rate: -1.0\): write functools",
        ),
        (
            Adam([nn.Parameter(torch.zeros(1))]),
            r"^quantizer_optimizer cannot be built \('Adam' object is not callable\)",
        ),
    ],
)
def test_a_factory_that_makes_no_optimizer_is_refused(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        QuantizationAwareTraining("w4a4", quantizer_optimizer=make)


@pytest.mark.parametrize(
    ("make", "message"),
    [(torch.optim.LBFGS, "^LBFGS cannot share its steps"), (partial(SGD, fused=True), "^a fused SGD cannot share")],
)
def test_lbfgs_and_fused_optimizers_are_refused(make: Make, message: str) -> None:
    model = network()
    with pytest.raises(ValueError, match=message), split_parameter_groups(model, 1.0, partial(Adam, lr=1e-4)):
        make(model.parameters(), lr=0.1)


@pytest.mark.parametrize(
    "setting", [LearningRateFinder(), StochasticWeightAveraging(0.05)], ids=lambda c: type(c).__name__
)
def test_callbacks_that_set_one_rate_for_all_are_refused(setting: L.Callback, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"^{type(setting).__name__} sets one learning rate for all parameters"):
        trainer(tmp_path, callback(), setting).fit(Classifier(), datamodule=Data())
