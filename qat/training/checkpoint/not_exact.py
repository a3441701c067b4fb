"""What keeps a resumed fit from being the uninterrupted one to the bit, as far as the fit itself can tell."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import lightning as L
import numpy as np
from lightning.pytorch.callbacks import EarlyStopping, StochasticWeightAveraging
from lightning.pytorch.utilities.model_helpers import is_overridden
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import Generator
from torch.utils.data import RandomSampler, Sampler

from qat.training.checkpoint.loop_position import LoopPosition
from qat.training.lightning.private_api import combination_mode, train_loader, validates_by_the_clock

OWN_RANDOM_STATE = (np.random.Generator, np.random.RandomState, random.Random, Generator)


def warn_if_not_exact(trainer: L.Trainer, module: L.LightningModule, position: LoopPosition, batches: int) -> None:
    """Warn of everything in a resumed fit that docs/resume.md lists as not exact.

    Args:
        trainer: of the resumed fit, whose state is restored.
        module: its LightningModule.
        position: where the checkpoint was written.
        batches: how many of its epoch were trained there.
    """
    found = [*_of_callbacks(trainer), *_of_loops(trainer, module, position), *_of_loaders(trainer, position, batches)]
    for reason in found:
        rank_zero_warn(f"the resumed fit may end with other bits than an uninterrupted one: {reason} (docs/resume.md).")


def _of_callbacks(trainer: L.Trainer) -> Iterator[str]:
    callbacks: list[L.Callback] = trainer.callbacks  # type: ignore[attr-defined]
    for callback in callbacks:
        if isinstance(callback, StochasticWeightAveraging):
            yield "StochasticWeightAveraging moves the end of the fit; use EMAWeightAveraging"
        if isinstance(callback, EarlyStopping) and callback.wait_count >= callback.patience:
            stopped = f"EarlyStopping of {callback.monitor!r} had ended it"
            yield f"{stopped}, and it goes on for an epoch; use the model of that checkpoint"


def _of_loops(trainer: L.Trainer, module: L.LightningModule, position: LoopPosition) -> Iterator[str]:
    if validates_by_the_clock(trainer):
        yield "val_check_interval is a time; write a number of batches, or a share of the epoch"
    if (hook := _lost_hook(position)) is not None and is_overridden(hook, module):
        yield (
            f"{type(module).__name__}.{hook}, which runs after the checkpoint is written, does not run again; put what must "
            "not be lost into on_before_zero_grad, or into a callback that comes first"
        )


def _lost_hook(position: LoopPosition) -> str | None:
    """The hook of the LightningModule that was to run when a callback wrote the checkpoint."""
    if position.batch_ends:
        return "on_train_batch_end"
    validation_ends = position.in_epoch and not (position.in_step or position.in_validation)
    return "on_validation_end" if validation_ends else None


def _of_loaders(trainer: L.Trainer, position: LoopPosition, batches: int) -> Iterator[str]:
    combined = train_loader(trainer)
    if combined is None:
        return
    for loader in combined.flattened:
        if getattr(loader, "persistent_workers", False) and (trainer.current_epoch > 0 or position.last_batch):
            yield "what its persistent workers draw at random begins anew; write persistent_workers=False"
        for owner in (getattr(loader, "dataset", None), getattr(loader, "sampler", None)):
            for name, value in getattr(owner, "__dict__", {}).items():
                if isinstance(value, OWN_RANDOM_STATE) and not (isinstance(owner, Sampler) and name == "generator"):
                    yield f"{type(owner).__name__}.{name} is random state that no checkpoint has; use torch's"
        if _began_anew(combined, loader, position, batches):
            yield (
                "the shorter of its loaders had begun anew within the epoch, and shuffles by the global random state; give it "
                "a generator"
            )


def _began_anew(combined: Any, loader: Any, position: LoopPosition, batches: int) -> bool:
    """Whether this loader was over, and begun again, in the epoch of the checkpoint."""
    if combination_mode(combined) != "max_size_cycle" or not position.in_epoch:
        return False
    sampler = getattr(loader, "sampler", None)
    return isinstance(sampler, RandomSampler) and sampler.generator is None and batches > len(loader)
