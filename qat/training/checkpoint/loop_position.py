"""Where in Lightning's loops a checkpoint was written, and how to continue from exactly there.

A checkpoint is written inside a hook. What Lightning does after that hook is lost to a resumed fit: the validation that was due
after the batch, the end of the epoch, a step of ReduceLROnPlateau. `LoopPosition` makes up for it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import lightning as L

from qat.training.lightning.private_api import (
    add_scheduler_steps,
    all_batches_drawn,
    end_batch,
    end_restart,
    end_restart_of_epochs,
    forget_restart_stage,
    gradients_accumulate,
    mark_validation_done,
    step_limit_reached,
    validation_follows_batch,
)

BATCH_PROGRESS = "epoch_loop.batch_progress"
VALIDATION_PROGRESS = "epoch_loop.val_loop.batch_progress"
"""Keys of Lightning in the loops' part of a checkpoint."""


@dataclass(frozen=True)
class LoopPosition:
    """A position in the loops of a fit. Checkpoints hold it under the names of its fields.

    Args:
        in_epoch: a train epoch is under way.
        in_step: a batch was requested that is not trained; only if an exception wrote the checkpoint.
        in_validation: a validation is under way; only if an exception wrote the checkpoint.
        batch_ends: on_train_batch_end wrote the checkpoint, so what follows a batch has not happened.
        validation_due: a validation has to follow; an unfinished one begins anew.
        last_batch: the last batch that was drawn was the last of its epoch.
        last_step: the last step was the last of the fit.
        epoch_ends: on_train_epoch_end wrote the checkpoint, so what follows an epoch has not happened.
        accumulating: gradients wait for further batches.
    """

    in_epoch: bool = False
    in_step: bool = False
    in_validation: bool = False
    batch_ends: bool = False
    validation_due: bool = False
    last_batch: bool = False
    last_step: bool = False
    epoch_ends: bool = False
    accumulating: bool = False

    @classmethod
    def current(cls, trainer: L.Trainer, requested: int) -> LoopPosition:
        """The position at this moment. requested: the number of batches that were requested in this epoch."""
        loop, steps = trainer.fit_loop, trainer.fit_loop.epoch_loop
        epochs: Any = loop.epoch_progress.current
        batches: Any = steps.batch_progress.current
        in_epoch = epochs.started > epochs.processed
        in_step = in_epoch and requested > batches.processed
        batch_ends = in_epoch and not in_step and batches.processed > batches.completed
        validated = steps.val_loop.batch_progress.current.completed
        in_validation = in_epoch and trainer.validating and validated < sum(steps.val_loop.max_batches)
        return cls(
            in_epoch=in_epoch,
            in_step=in_step,
            in_validation=in_validation,
            batch_ends=batch_ends,
            validation_due=in_validation or (batch_ends and validation_follows_batch(trainer)),
            last_batch=all_batches_drawn(trainer),
            last_step=step_limit_reached(trainer),
            epoch_ends=not in_epoch and epochs.processed > epochs.completed,
            accumulating=in_epoch and gradients_accumulate(trainer),
        )

    def rewrite(self, loops: dict[str, Any]) -> None:
        """Change the loops' state of a checkpoint, in place, so that Lightning continues from it without skipping anything."""
        if not self.in_epoch:
            for epochs in (loops["epoch_progress"]["total"], loops["epoch_progress"]["current"]):
                epochs["ready"] = epochs["completed"] = epochs["processed"]
        if self.batch_ends and (self.validation_due or self.last_batch or self.last_step):
            for batches in (loops[BATCH_PROGRESS]["total"], loops[BATCH_PROGRESS]["current"]):
                batches["completed"] += 1
        if self.validation_due:  # Lightning returns to a validation that has begun
            validation = loops[VALIDATION_PROGRESS]
            done = validation["total"]["completed"]
            validation["current"] = {"ready": 1, "started": 1, "processed": 0, "completed": 0}
            validation["total"] = {"ready": done + 1, "started": done + 1, "processed": done, "completed": done}
            validation["is_last_batch"] = False

    def resume(self, trainer: L.Trainer) -> None:
        """After on_train_start, do what is left of the batch or of the epoch and what Lightning will not do."""
        steps = trainer.fit_loop.epoch_loop
        if self.validation_due:  # take back the batch that `rewrite` pretended to have begun
            pretended: Any = steps.val_loop.batch_progress.total
            pretended.ready -= 1
            pretended.started -= 1
        if self.in_epoch:
            end_restart_of_epochs(trainer)  # else ReduceLROnPlateau makes no step at the end of this epoch
        if self.in_epoch and step_limit_reached(trainer):
            self._end_fit(trainer)
        elif self.batch_ends and self.last_batch and not self.validation_due:
            mark_validation_done(trainer)
            steps.update_lr_schedulers("step", update_plateau_schedulers=True)
            add_scheduler_steps(trainer, 1)
        if self.in_step:
            _forget_step(trainer)
        if not self.in_epoch:
            end_restart(trainer)
        if self.epoch_ends and self.last_batch:
            _step_plateau_schedulers(trainer)

    def _end_fit(self, trainer: L.Trainer) -> None:
        """End this batch and its epoch: no step is left, so Lightning would not enter its loops."""
        end_restart(trainer)
        end_batch(trainer, validate=self.validation_due)
        trainer.fit_loop.on_advance_end()


def _step_plateau_schedulers(trainer: L.Trainer) -> None:
    """Do what follows on_train_epoch_end, with the number that the epoch had then."""
    progress = trainer.fit_loop.epoch_progress.current
    progress.completed -= 1
    trainer.fit_loop.epoch_loop.update_lr_schedulers("epoch", update_plateau_schedulers=True)
    progress.completed += 1


def _forget_step(trainer: L.Trainer) -> None:
    """Do not count the batch that was requested and not trained."""
    steps = trainer.fit_loop.epoch_loop
    forget_restart_stage(trainer)
    batches: Any
    for batches in (steps.batch_progress.total, steps.batch_progress.current):
        batches.ready = batches.started = batches.processed = batches.completed
    if not gradients_accumulate(trainer):
        add_scheduler_steps(trainer, -1)  # Lightning adds one
