"""A run is resumed as what it was."""

from pathlib import Path

import lightning as L
import pytest
from lightning.pytorch.callbacks import EarlyStopping, LearningRateFinder, ModelCheckpoint
from omegaconf import OmegaConf

from qat.experiment import build
from qat.experiment.check import check_callbacks, check_images, check_lengths, check_same_run, warn_of_unwise_values
from qat.experiment.schema.trainer import QUICK
from qat.training.callbacks import ExportONNX, Freeze, PTQBaselines, Report
from tests.experiment.configurations import composed


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a run with the defaults."""
    path = tmp_path_factory.mktemp("run")
    OmegaConf.save(composed(), path / "config.yaml", resolve=True)
    return path


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("seed=1", "that run had seed=0, this one has seed=1"),
        ("optim.lr=0.5", "that run had optim.lr=0.05, this one has optim.lr=0.5"),
        ("model.depth=14", "that run had model.depth=8, this one has model.depth=14"),
        ("optim=adam", "that run had optim.optimizer._target_=torch.optim.SGD, this one has .*Adam"),
        ("freeze.scales=0.5", "that run had freeze.scales=None, this one has freeze.scales=0.5"),
        ("policy=w2a2", "that run had policy.first_last_bits=None, this one has policy.first_last_bits=8"),
        ("+trainer.accumulate_grad_batches=2", "that run had trainer.accumulate_grad_batches=None"),
    ],
)
def test_what_decides_a_fit_must_be_the_same(override: str, said: str, folder: Path) -> None:
    with pytest.raises(ValueError, match=said):
        check_same_run(composed(override), folder)


@pytest.mark.parametrize(
    "overrides",
    [
        (),
        ("trainer.max_epochs=30", "trainer.max_steps=7"),
        ("ptq=full", "export=none", "logger=tensorboard", "num_workers=1", "compile=true"),
        ("model.checkpoint=moved.safetensors",),
    ],
)
def test_how_long_it_goes_on_and_what_is_measured_is_free(overrides: tuple[str, ...], folder: Path) -> None:
    check_same_run(composed(*overrides), folder)


def test_an_epoch_has_batches_and_is_validated() -> None:
    check_lengths(composed("+trainer.limit_train_batches=0.5", "+trainer.limit_val_batches=0.5"), 4, 0)
    for override, said in (
        (
            "+trainer.limit_train_batches=0.01",
            r"trainer.limit_train_batches=0.01 is less than one of 9 batches: write a number of them, 1 to 9",
        ),
        ("+trainer.limit_val_batches=0.1", r"trainer.limit_val_batches=0.1 is less than one of 2 batches"),
        ("+trainer.val_check_interval=10", r"trainer.val_check_interval=10 is more than the 9 batches of an epoch"),
    ):
        with pytest.raises(ValueError, match=said):
            check_lengths(composed(override), 9, 2)


def test_a_checkpoint_of_somebody_elses_is_taken_as_it_is(tmp_path: Path) -> None:
    check_same_run(composed("seed=1"), tmp_path)


class Own(L.Callback):
    """A callback of a user's, which may log anything."""


def test_callbacks_are_callbacks_and_wait_for_what_comes() -> None:
    waits = EarlyStopping(monitor="val/foo")
    check_callbacks({"stop": EarlyStopping(monitor="val/loss", patience=0), "progress": L.Callback()})
    check_callbacks({"stop": waits, "mine": Own()})
    for callbacks, said in (
        ({"x": "/home"}, r"callbacks\.x makes a str: write the _target_ of a callback"),
        ({"stop": waits}, r"callbacks\.stop\.monitor='val/foo' is not logged: write one of train/loss"),
        ({"rate": LearningRateFinder()}, r"callbacks\.rate is a LearningRateFinder, which changes what the config"),
        ({"stop": EarlyStopping(monitor="val/loss", patience=-1)}, r"callbacks\.stop\.patience=-1 is not possible"),
    ):
        with pytest.raises(ValueError, match=said):
            check_callbacks(callbacks)


@pytest.mark.parametrize(
    ("kind", "monitor", "mode"),
    [
        (ModelCheckpoint, "val/top1", "min"),
        (ModelCheckpoint, "step", "min"),
        (EarlyStopping, "val/top1", "min"),  # what it does if nothing is said
        (EarlyStopping, "val/calibration_error", "max"),
    ],
)
def test_the_worst_is_not_taken_for_the_best(kind: type[L.Callback], monitor: str, mode: str) -> None:
    right = "max" if mode == "min" else "min"
    with pytest.raises(
        ValueError, match=f"callbacks.mine.mode={mode} takes the worst for the best.* {monitor} .*mode={right}"
    ):
        check_callbacks({"mine": kind(monitor=monitor, mode=mode)})  # type: ignore[call-arg]
    check_callbacks({"mine": kind(monitor=monitor, mode=right)})  # type: ignore[call-arg]


@pytest.mark.parametrize("kind", [Report, ExportONNX, PTQBaselines])
def test_what_the_run_makes_itself_is_no_callback_of_its_own(kind: type[L.Callback]) -> None:
    with pytest.raises(
        ValueError, match=f"callbacks.mine is a {kind.__name__}, which the run makes itself: leave it out"
    ):
        check_callbacks({"mine": kind()})


def test_two_callbacks_of_one_kind_are_refused() -> None:
    check_callbacks({"a": EarlyStopping("val/loss"), "b": EarlyStopping("train/loss")})
    with pytest.raises(ValueError, match=r"callbacks.b is a second Freeze, beside callbacks.a: change that one"):
        check_callbacks({"a": Freeze(0.5), "b": Freeze(0.7)})


def test_values_without_effect_are_warned_of(recwarn: pytest.WarningsRecorder) -> None:
    warn_of_unwise_values(composed())
    assert not recwarn.list
    overrides = (
        "pruning.begin=0.3",
        "budget.weight_bits=[2,8]",
        "distillation.weight=0",
        "distillation.temperature=0.5",
    )
    warn_of_unwise_values(composed(*overrides))
    said = [str(found.message) for found in recwarn.list]
    assert [text.partition(" counts")[0] for text in said] == [
        "pruning.begin=0.3",
        "budget.weight_bits=[2, 8]",
        "distillation.temperature=0.5",
    ]
    assert said[0].endswith("counts for nothing without one of pruning.sparsity, pruning.pattern, pruning.channels.")


def test_a_target_that_hydra_refuses_is_named() -> None:
    with pytest.raises(ValueError, match=r"distillation.teacher cannot be built: .*os.system"):
        build.part({"_target_": "os.system", "command": "true"}, "distillation.teacher")


def test_the_quick_run_that_is_proposed_is_possible() -> None:
    overrides = [word for word in QUICK.text.split() if "=" in word]
    config = composed(*overrides)
    check_images(config, config.data.limit_train)
    assert "data.limit_train=1000" in overrides
