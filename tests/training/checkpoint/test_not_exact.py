"""A resumed fit says what keeps it from the bits of an uninterrupted one, and otherwise says nothing."""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lightning.pytorch.callbacks import EarlyStopping, StochasticWeightAveraging
from torch.utils.data import DataLoader

from tests.training.checkpoint.interrupted_fits import (
    AugmentedImages,
    CheckpointInEveryHook,
    Fit,
    RandomClassifier,
    loader_with_generator,
)
from tests.training.user_modules import LIGHTNING

pytestmark = [
    *LIGHTNING,
    pytest.mark.filterwarnings("ignore:ReduceLROnPlateau conditioned on metric"),
    pytest.mark.filterwarnings("ignore:SWA is initializing"),
]


class OwnNoise(AugmentedImages):
    def __init__(self) -> None:
        super().__init__()
        self.noise = np.random.default_rng(0)


class Counting(RandomClassifier):
    def on_train_batch_end(self, *_: Any) -> None: ...


def loader() -> DataLoader[Any]:
    return DataLoader(AugmentedImages(), 8, shuffle=True)


def two_loaders() -> dict[str, DataLoader[Any]]:
    return {"a": loader(), "b": DataLoader(AugmentedImages(24), 8, shuffle=True)}


def own_noise() -> DataLoader[Any]:
    return DataLoader(OwnNoise(), 8, shuffle=True)


def persistent() -> DataLoader[Any]:
    return DataLoader(AugmentedImages(), 8, shuffle=True, num_workers=1, persistent_workers=True)


CASES: dict[str, tuple[Callable[[], Any], Callable[[], dict[str, Any]], str, str]] = {
    "averaging": (
        loader,
        lambda: {"callbacks": [StochasticWeightAveraging(0.01, swa_epoch_start=1)]},
        "02_batch_3",
        "StochasticWeightAveraging moves the end of the fit; use EMAWeightAveraging",
    ),
    "the clock": (loader, lambda: {"val_check_interval": "00:00:10:00"}, "02_batch_3", "val_check_interval is a time"),
    "random state of its own": (own_noise, dict, "02_batch_3", "OwnNoise.noise is random state that no checkpoint has"),
    "a hook that is lost": (
        loader,
        lambda: {"kind": Counting},
        "02_batch_3",
        "Counting.on_train_batch_end, which runs",
    ),
    "a shorter loader": (two_loaders, dict, "03_batch_4", "the shorter of its loaders had begun anew within the epoch"),
    "workers that persist": (persistent, dict, "07_batch_6", "what its persistent workers draw at random begins anew"),
}
SLOW = ("workers that persist", "the clock", "a shorter loader", "a hook that is lost")


@pytest.mark.parametrize("name", [pytest.param(name, marks=pytest.mark.slow if name in SLOW else ()) for name in CASES])
def test_what_is_not_exact_is_said(name: str, tmp_path: Path) -> None:
    make, options, checkpoint, said = CASES[name]
    Fit(tmp_path, make, callbacks=[CheckpointInEveryHook(tmp_path)], epochs=2).run()
    with pytest.warns(match=f"the resumed fit may end with other bits than an uninterrupted one: {said}"):
        Fit(tmp_path, make, seed=9, epochs=2, **options()).run(tmp_path / f"{checkpoint}.ckpt")


def test_a_fit_that_had_stopped_says_that_it_goes_on(tmp_path: Path) -> None:
    options = {"epochs": 6}
    stops = EarlyStopping("val/top1", mode="max", patience=0, min_delta=2.0)
    whole = Fit(tmp_path, loader, callbacks=[stops, CheckpointInEveryHook(tmp_path)], **options).run()
    assert whole.trainer.current_epoch < 6
    last = sorted(tmp_path.glob("*_epoch_*.ckpt"))[-1]
    again = EarlyStopping("val/top1", mode="max", patience=0, min_delta=2.0)
    with pytest.warns(match="EarlyStopping of 'val/top1' had ended it, and it goes on for an epoch"):
        Fit(tmp_path, loader, seed=9, callbacks=[again], **options).run(last)


def test_an_exact_fit_says_nothing(tmp_path: Path) -> None:
    Fit(tmp_path, loader_with_generator, callbacks=[CheckpointInEveryHook(tmp_path)], epochs=2).run()
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        waits = EarlyStopping("val/top1", mode="max", patience=9)
        Fit(tmp_path, loader_with_generator, seed=9, epochs=2, callbacks=[waits]).run(tmp_path / "07_batch_6.ckpt")
    assert not [str(w.message) for w in said if "the resumed fit" in str(w.message)]
