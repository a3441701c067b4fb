"""A fit that is interrupted anywhere ends like one that is not: the same bits, the same batches and the same logged values."""

import functools
import os
import random
import shutil
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import GradientAccumulationScheduler, ModelCheckpoint, OnExceptionCheckpoint
from torch import Generator
from torch.utils.data import DataLoader, IterableDataset, RandomSampler

from qat.training.callbacks import OscillationControl, QuantizationAwareTraining
from qat.training.checkpoint.resume import RESUME_KEY
from qat.training.lightning.random_state import RandomState
from tests.training.checkpoint.interrupted_fits import (
    AugmentedImages,
    CheckpointInEveryHook,
    Fit,
    RandomClassifier,
    differences,
    loader_with_generator,
)
from tests.training.user_modules import LIGHTNING

pytestmark = [*LIGHTNING, pytest.mark.filterwarnings("ignore:ReduceLROnPlateau conditioned on metric")]


def shuffled() -> DataLoader[Any]:
    return DataLoader(AugmentedImages(), 8, shuffle=True)


def loader_that_draws_late() -> DataLoader[Any]:
    sampler = RandomSampler(range(40), replacement=True, generator=Generator().manual_seed(1))
    return DataLoader(AugmentedImages(), 8, sampler=sampler)


def loader_with_workers() -> DataLoader[Any]:
    return DataLoader(AugmentedImages(), 8, shuffle=True, num_workers=2)


def two_loaders() -> dict[str, DataLoader[Any]]:
    shorter = DataLoader(AugmentedImages(24), 8, shuffle=True, generator=Generator().manual_seed(5))
    return {"a": shuffled(), "b": shorter}


class StatefulLoader(DataLoader[Any]):
    """Keeps its position, like torchdata's StatefulDataLoader: the state that was loaded is that of the next `iter`."""

    def __init__(self) -> None:
        super().__init__(AugmentedImages(), 8)
        self.begin = self.at = 0

    def state_dict(self) -> dict[str, int]:
        return {"at": self.at}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.begin = state["at"]

    def __iter__(self) -> Any:
        begin, self.begin = self.begin, 0
        return self._from(begin)

    def _from(self, begin: int) -> Iterator[Any]:
        for self.at in range(begin + 1, 6):
            yield self.collate_fn([self.dataset[i] for i in range(8 * self.at - 8, 8 * self.at)])


class GeneratorLoader(StatefulLoader):
    """The same with a generator, which reads the state that was loaded when the first batch is asked for."""

    def __iter__(self) -> Iterator[Any]:
        begin, self.begin = self.begin, 0
        yield from self._from(begin)


class LiveLoader(StatefulLoader):
    """A generator that goes on from where the loader is, and is at the start when a pass is over."""

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.at = state["at"]

    def __iter__(self) -> Iterator[Any]:
        while self.at < 5:
            self.at += 1
            place, self.at = self.at, self.at % 5
            yield self.collate_fn([self.dataset[i] for i in range(8 * place - 8, 8 * place)])
            if self.at == 0:
                return


class Stream(IterableDataset[Any]):
    """Images of unknown length, in a random order, with noise that is drawn as they are read."""

    def __iter__(self) -> Iterator[Any]:
        images = AugmentedImages()
        yield from (images[i] for i in torch.randperm(37).tolist())


def stream() -> DataLoader[Any]:
    return DataLoader(Stream(), 8)


class AccumulatingByHand(RandomClassifier):
    """Two optimizers that step after every other batch."""

    def __init__(self, loader: Callable[[], Any]) -> None:
        super().__init__(loader)
        self.automatic_optimization = False

    def training_step(self, batch: Any, batch_idx: int) -> None:
        self.manual_backward(super().training_step(batch, batch_idx))
        for optimizer in self.optimizers() if batch_idx % 2 else []:  # type: ignore[union-attr]
            optimizer.step()
            optimizer.zero_grad()

    def configure_optimizers(self) -> Any:
        body = [p for n, p in self.named_parameters() if "head" not in n]
        head = [p for n, p in self.named_parameters() if "head" in n]
        return torch.optim.SGD(body, lr=0.02, momentum=0.9), torch.optim.AdamW(head, lr=0.01)


BY_STEPS = {"epochs": -1, "max_steps": 12}
CASES: dict[
    str, tuple[Callable[[], Any], dict[str, Any], slice]
] = {  # the slice chooses the checkpoints that are resumed by default
    "validated after each epoch": (shuffled, {}, slice(1, None, 6)),
    "own generator, validated within epochs": (loader_with_generator, {"val_check_interval": 2}, slice(0, None, 8)),
    "a sampler that draws late, validated across epochs": (
        loader_that_draws_late,
        {"val_check_interval": 3, "check_val_every_n_epoch": None},
        slice(1, None, 8),
    ),
    "counted in steps": (shuffled, {"val_check_interval": 4, **BY_STEPS}, slice(0, None, 6)),
    "counted in steps, never validated": (shuffled, {"limit_val_batches": 0, **BY_STEPS}, slice(-4, None, 3)),
    "gradients accumulate": (shuffled, {"accumulate_grad_batches": 2}, slice(0, 6, 2)),
    "gradients accumulate by hand": (shuffled, {"kind": AccumulatingByHand}, slice(2, None, 6)),
    "loaders made anew": (shuffled, {"reload_dataloaders_every_n_epochs": 1}, slice(6, None, 7)),
    "validated every other epoch, part of the data": (
        shuffled,
        {"check_val_every_n_epoch": 2, "limit_train_batches": 3},
        slice(1, None, 4),
    ),
    "two loaders": (two_loaders, {"epochs": 2}, slice(0, None, 3)),
    "a loader that keeps its place": (StatefulLoader, {"epochs": 2}, slice(0, None, 3)),
    "a loader that reads its place late": (GeneratorLoader, {"epochs": 3}, slice(4, None, 6)),
    "a loader that reads its place late, validated within epochs": (
        GeneratorLoader,
        {"epochs": 2, "val_check_interval": 2},
        slice(7, None, 9),
    ),
    "a loader that goes on from its place": (LiveLoader, {"epochs": 2}, slice(6, None, 9)),
    "in double precision": (shuffled, {"epochs": 2, "precision": "64-true"}, slice(4, 5)),
    "unknown length": (stream, {"epochs": 2}, slice(0, None, 3)),
    "unknown length, validated within epochs": (stream, {"epochs": 2, "val_check_interval": 2}, slice(2, None, 4)),
    "unknown length, gradients accumulate by hand": (stream, {"kind": AccumulatingByHand}, slice(4, None, 5)),
    "unknown length, counted in steps": (stream, {"val_check_interval": 4, **BY_STEPS}, slice(3, None, 6)),
    "loading in workers": (loader_with_workers, {"epochs": 2}, slice(6, 7)),
}


@pytest.mark.parametrize("every", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["some", "every one"])
@pytest.mark.parametrize(("loader", "options", "some"), CASES.values(), ids=CASES.keys())
def test_a_fit_resumed_from_any_checkpoint_ends_with_the_same_bits(
    loader: Callable[[], Any], options: dict[str, Any], some: slice, every: bool, tmp_path: Path
) -> None:
    whole = Fit(tmp_path, loader, callbacks=[CheckpointInEveryHook(tmp_path)], **options).run()
    end = whole.end()
    written = sorted(tmp_path.glob("*.ckpt"))[slice(None) if every else some]
    assert written
    for path in written:
        resumed = Fit(tmp_path, loader, seed=99, **options).run(path)
        assert differences(end, resumed.end()) == [], path.name
        seen = len(resumed.diary.pages)
        assert seen == 0 or resumed.diary.pages == whole.diary.pages[-seen:], path.name


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """The folder of a fit with a checkpoint in every hook, and how it ended."""
    folder = tmp_path_factory.mktemp("whole")
    return folder, Fit(folder, shuffled, callbacks=[CheckpointInEveryHook(folder)]).run().end()


@pytest.fixture(scope="module")
def ends(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], dict[str, Any]]:
    """How a fit of two epochs ends that steps after every n-th batch."""
    folder = tmp_path_factory.mktemp("ends")
    return functools.cache(lambda n: Fit(folder, shuffled, accumulate_grad_batches=n, epochs=2).run().end())


def test_dampened_and_frozen_oscillations_are_resumed(tmp_path: Path) -> None:
    def control() -> OscillationControl:
        return OscillationControl(dampening=(0.0, 0.5), freezing=(0.3, 0.02), momentum=0.2, max_bits=8)

    whole = Fit(tmp_path, shuffled, callbacks=[control(), CheckpointInEveryHook(tmp_path)]).run()
    state = {name: value for name, value in whole.end()["weights"].items() if ".oscillations." in name}
    assert any(value.any() for name, value in state.items() if name.endswith(".frozen"))
    for path in sorted(tmp_path.glob("*.ckpt"))[::5]:
        resumed = Fit(tmp_path, shuffled, seed=99, callbacks=[control()]).run(path)
        assert differences(whole.end(), resumed.end()) == [], path.name


def test_an_epoch_goes_on_with_the_batches_that_its_scheduler_accumulates(tmp_path: Path) -> None:
    def scheduler() -> GradientAccumulationScheduler:
        return GradientAccumulationScheduler({0: 1, 1: 2})

    whole = Fit(tmp_path, shuffled, epochs=2, callbacks=[scheduler(), CheckpointInEveryHook(tmp_path)]).run()
    for path in (tmp_path / "02_batch_3.ckpt", tmp_path / "08_batch_6.ckpt"):
        resumed = Fit(tmp_path, shuffled, seed=99, epochs=2, callbacks=[scheduler()]).run(path)
        assert differences(whole.end(), resumed.end()) == [], path.name


def test_a_fit_interrupted_twice_in_one_epoch_ends_with_the_same_bits(
    whole: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    folder, end = whole
    Fit(tmp_path, shuffled, seed=1, callbacks=[CheckpointInEveryHook(tmp_path)]).run(folder / "07_batch_6.ckpt")
    assert differences(end, Fit(tmp_path, shuffled, seed=2).run(tmp_path / "01_batch_8.ckpt").end()) == []


@pytest.mark.parametrize("name", ["02_batch_3", "04_batch_5", "05_validation_5", "06_epoch_5"])
def test_without_its_record_a_resumed_fit_ends_differently(
    name: str, whole: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    folder, end = whole
    checkpoint = torch.load(folder / f"{name}.ckpt", weights_only=True)
    del checkpoint[RESUME_KEY]
    torch.save(checkpoint, tmp_path / "without.ckpt")
    with pytest.warns(match="not resumable") if name == "02_batch_3" else nullcontext():
        resumed = Fit(tmp_path, shuffled).run(tmp_path / "without.ckpt")
    assert "['weights']['net.conv1.weight']" in differences(end, resumed.end())


class RaiseInHook(L.Callback):
    """Raises in the n-th call of a hook."""

    def __init__(self, hook: str, n: int) -> None:
        self.left = n
        setattr(self, hook, self.fail)

    def fail(self, *_: Any) -> None:
        self.left -= 1
        if self.left == 0:
            raise InterruptionError


class InterruptionError(Exception):
    pass


@pytest.mark.parametrize(
    ("hook", "n", "every"),
    [
        ("on_train_batch_start", 1, 1),
        ("on_train_batch_start", 6, 1),  # the first batch of an epoch
        ("on_train_batch_start", 8, 2),  # a gradient waits
        ("on_train_batch_end", 5, 1),
        ("on_train_epoch_start", 2, 1),
        ("on_train_epoch_end", 2, 1),
        ("on_validation_start", 2, 1),  # the first belongs to the sanity check
        ("on_validation_batch_end", 3, 1),
    ],
)
@pytest.mark.filterwarnings("ignore:.*ckpt_path=.*")
def test_a_checkpoint_saved_by_an_exception_between_two_steps_is_exact(
    hook: str, n: int, every: int, ends: Callable[[int], dict[str, Any]], tmp_path: Path
) -> None:
    options = {"accumulate_grad_batches": every, "epochs": 2}
    failing = [RaiseInHook(hook, n), OnExceptionCheckpoint(tmp_path, "saved")]
    with pytest.raises(InterruptionError):
        Fit(tmp_path, shuffled, callbacks=failing, **options).run()
    assert differences(ends(every), Fit(tmp_path, shuffled, seed=9, **options).run(tmp_path / "saved.ckpt").end()) == []


def test_the_best_checkpoint_is_copied_into_another_folder(tmp_path: Path) -> None:
    def best(folder: str) -> ModelCheckpoint:
        return ModelCheckpoint(tmp_path / folder, "best", monitor="val/top1", mode="max")

    first = best("first")
    Fit(tmp_path, shuffled, callbacks=[first, CheckpointInEveryHook(tmp_path)]).run()
    (tmp_path / "first").rename(tmp_path / "moved")
    late = tmp_path / "moved" / "late.ckpt"
    sorted(tmp_path.glob("*_epoch_*.ckpt"))[-1].rename(late)
    second = best("second")
    Fit(tmp_path, shuffled, seed=3, callbacks=[second]).run(late)
    assert second.best_model_score == first.best_model_score
    assert Path(second.best_model_path) == tmp_path / "second" / "best.ckpt"
    assert (tmp_path / "second" / "best.ckpt").read_bytes() == (tmp_path / "moved" / "best.ckpt").read_bytes()
    (tmp_path / "moved" / "best.ckpt").unlink()
    third = best("third")
    with pytest.warns(match="is gone: the best one is chosen among those that follow"):
        Fit(tmp_path, shuffled, seed=3, callbacks=[third]).run(late)
    assert third.best_model_path == ""


def test_instead_of_a_damaged_last_checkpoint_the_one_before_is_used(
    whole: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    shutil.copytree(whole[0], tmp_path, dirs_exist_ok=True)
    last = tmp_path / "12_validation_10.ckpt"
    written = last.stat().st_mtime
    last.write_bytes(last.read_bytes()[:5000])
    os.utime(last, (written, written))
    with pytest.warns(match="12_validation_10.ckpt is damaged: 11_batch_10.ckpt, of step 10, is used"):
        resumed = Fit(tmp_path, shuffled, seed=4).run(last)
    assert differences(whole[1], resumed.end()) == []
    assert resumed.diary.pages[0][0] == "validation"


def test_random_state_survives_a_checkpoint(tmp_path: Path) -> None:
    random.gauss(0, 1), np.random.randn(3)  # noqa: NPY002 (each keeps a second number for later)
    own = Generator().manual_seed(7)
    torch.save(RandomState.current([own]).to_plain(), tmp_path / "state.pt")

    def draw() -> list[Any]:
        return [torch.rand(3).tolist(), np.random.randn(3).tolist(), random.gauss(0, 1), torch.rand(1, generator=own)]  # noqa: NPY002

    first = draw()
    assert draw() != first
    RandomState.from_plain(torch.load(tmp_path / "state.pt", weights_only=True)).restore([own])
    assert draw() == first


def test_after_the_fit_no_hook_stays_wrapped(tmp_path: Path) -> None:
    fit = Fit(tmp_path, shuffled, epochs=1).run()
    assert not {"on_train_start", "on_train_epoch_start", "on_validation_model_zero_grad"} & vars(fit.module).keys()
    assert "dataloader" not in vars(fit.trainer.fit_loop._data_source)
    assert "load_checkpoint" not in vars(fit.trainer.strategy.checkpoint_io)
    assert isinstance(fit.qat, QuantizationAwareTraining)


def test_a_checkpoint_may_be_written_before_dataloaders_exist_and_after_the_fit(tmp_path: Path) -> None:
    class Early(L.Callback):
        def on_fit_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
            trainer.save_checkpoint(tmp_path / "early.ckpt")

    fit = Fit(tmp_path, shuffled, epochs=1, callbacks=[Early()]).run()
    fit.trainer.save_checkpoint(tmp_path / "late.ckpt")
    for name in ("early", "late"):
        assert Fit(tmp_path, shuffled, epochs=2).run(tmp_path / f"{name}.ckpt").trainer.global_step == 10
