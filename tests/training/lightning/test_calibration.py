"""Calibration sees training images alone, also of a dataset that holds others, and leaves samplers as they are."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from torch import Generator, Tensor
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    RandomSampler,
    Sampler,
    SubsetRandomSampler,
    WeightedRandomSampler,
)

from qat.training.callbacks import PTQBaselines, QuantizationAwareTraining
from qat.training.lightning.calibration import training_indices
from tests.training.user_modules import LIGHTNING, Classifier, images, trainer

pytestmark = LIGHTNING
TRAIN = (3, 4, 5, 11, 12, 17, 18, 25)
"""Samples that train, of a dataset that holds 32; the others are validated."""


class WholeDataset(Dataset[Any]):
    """Training and validation images in one dataset: a sampler says which is which."""

    def __init__(self) -> None:
        self.pixels, self.labels = images(32).tensors
        self.read: set[int] = set()

    def __len__(self) -> int:
        return 32

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        self.read.add(int(index))
        return self.pixels[index], self.labels[index]


class EveryPassAnother(Sampler[int]):
    """A sampler of somebody's own, which counts its passes."""

    def __init__(self) -> None:
        self.passes = 0

    def __iter__(self) -> Iterator[int]:
        self.passes += 1
        return iter(TRAIN[self.passes % 8 :] + TRAIN[: self.passes % 8])

    def __len__(self) -> int:
        return len(TRAIN)


class Endless(EveryPassAnother):
    def __iter__(self) -> Iterator[int]:
        while True:
            yield from TRAIN


class Batches(EveryPassAnother):
    def __iter__(self) -> Iterator[Any]:
        indices = list(super().__iter__())
        return iter([indices[:4], indices[4:]])

    def __len__(self) -> int:
        return 2


def weights() -> list[float]:
    return [float(i in TRAIN) for i in range(32)]


SAMPLERS: dict[str, Any] = {
    "SubsetRandomSampler": lambda: {"sampler": SubsetRandomSampler(TRAIN)},
    "of a tensor": lambda: {"sampler": SubsetRandomSampler(torch.tensor(TRAIN))},  # type: ignore[arg-type]
    "with a generator": lambda: {"sampler": SubsetRandomSampler(TRAIN, Generator().manual_seed(2))},
    "WeightedRandomSampler": lambda: {"sampler": WeightedRandomSampler(weights(), 64)},
    "a list": lambda: {"sampler": list(TRAIN)},
    "its own": lambda: {"sampler": EveryPassAnother()},
    "batches": lambda: {"batch_sampler": Batches(), "batch_size": 1},
}


@pytest.mark.parametrize("options", SAMPLERS.values(), ids=SAMPLERS.keys())
def test_only_samples_that_the_sampler_draws_are_read(options: Any, tmp_path: Path) -> None:
    data = WholeDataset()
    loader: DataLoader[Any] = DataLoader(data, **{"batch_size": 4, **options()})
    calibrated: list[set[int]] = []

    class Look(L.Callback):
        def on_train_start(self, *_: Any) -> None:
            calibrated.append(set(data.read))

    callbacks = [QuantizationAwareTraining("w4a8", quantizer_lr_ratio=0.01), PTQBaselines(["MinMax"]), Look()]
    fit = trainer(tmp_path, *callbacks, max_steps=1, limit_val_batches=0)
    fit.fit(Classifier(), loader)
    assert calibrated == [set(TRAIN)]


def test_a_sampler_is_left_as_it_is() -> None:
    for sampler in (EveryPassAnother(), Batches()):
        batches = isinstance(sampler, Batches)
        loader: DataLoader[Any] = DataLoader(
            WholeDataset(), **({"batch_sampler": sampler} if batches else {"sampler": sampler})
        )
        assert list(training_indices(loader)) == list(TRAIN)
        assert sampler.passes == 0


def test_an_endless_sampler_is_asked_for_one_pass() -> None:
    assert list(training_indices(DataLoader(WholeDataset(), sampler=Endless()))) == list(TRAIN)


def test_all_samples_of_usual_samplers_may_calibrate() -> None:
    data = WholeDataset()
    part = RandomSampler(range(10), num_samples=4)
    few = BatchSampler(RandomSampler(data), 30, drop_last=True)
    for loader, n in (
        (DataLoader(data), 32),
        (DataLoader(data, shuffle=True, batch_size=30, drop_last=True), 32),
        (DataLoader(data, sampler=part), 10),
        (DataLoader(data, batch_sampler=few), 32),
    ):
        assert list(training_indices(loader)) == list(range(n))
