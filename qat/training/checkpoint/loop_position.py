"""Where in Lightning's loops a checkpoint was written, and how to go on from exactly there.

A checkpoint is written inside a hook, and what Lightning does after that hook is lost to a resumed fit: the validation
that was due after the batch, the end of the epoch, a step of ReduceLROnPlateau. This is what it skips and we do not.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import lightning as L
from lightning.pytorch.loops.loop import _Loop
from lightning.pytorch.loops.training_epoch_loop import RestartStage
from lightning.pytorch.loops.utilities import _is_max_limit_reached

BATCHES = "epoch_loop.batch_progress"
VALIDATION = "epoch_loop.val_loop.batch_progress"


@dataclass(frozen=True)
class LoopPosition:
    """A place in the loops of a fit.

    Args:
        in_epoch: a train epoch is under way.
        in_step: a batch was asked for that is not trained; only where an exception wrote the checkpoint.
        in_validation: a validation is not over; only where an exception wrote the checkpoint.
        batch_ends: written by on_train_batch_end, so that what follows a batch has not happened.
        validation_due: a validation has to follow; one that was not over begins anew.
        last_batch: the last batch that was drawn was the last of its epoch.
        last_step: it was the last of the fit.
        epoch_ends: written by on_train_epoch_end, so that what follows an epoch has not happened.
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
    def now(cls, trainer: L.Trainer, asked: int) -> LoopPosition:
        """asked: batches that were asked of the dataloader in this epoch."""
        loop, steps = trainer.fit_loop, trainer.fit_loop.epoch_loop
        epochs: Any = loop.epoch_progress.current
        batches: Any = steps.batch_progress.current
        in_epoch = epochs.started > epochs.processed
        in_step = in_epoch and asked > batches.processed
        batch_ends = in_epoch and not in_step and batches.processed > batches.completed
        validation = steps.val_loop.batch_progress.current.completed
        in_validation = in_epoch and trainer.validating and validation < sum(steps.val_loop.max_batches)
        fetcher = loop._data_fetcher
        follows = batch_ends and fetcher is not None and steps._should_check_val_fx(fetcher)
        return cls(
            in_epoch=in_epoch,
            in_step=in_step,
            in_validation=in_validation,
            batch_ends=batch_ends,
            validation_due=bool(in_validation or follows),
            last_batch=bool(steps._num_ready_batches_reached()),
            last_step=_is_max_limit_reached(steps.global_step, steps.max_steps),
            epoch_ends=not in_epoch and epochs.processed > epochs.completed,
            accumulating=bool(in_epoch and steps._should_accumulate()),
        )

    def rewrite(self, loops: dict[str, Any]) -> None:
        """Change the loops' state of a checkpoint, in place, into one from which Lightning goes on without skipping."""
        if not self.in_epoch:
            for epochs in (loops["epoch_progress"]["total"], loops["epoch_progress"]["current"]):
                epochs["ready"] = epochs["completed"] = epochs["processed"]
        if self.batch_ends and (self.validation_due or self.last_batch or self.last_step):
            for batches in (loops[BATCHES]["total"], loops[BATCHES]["current"]):
                batches["completed"] += 1
        if self.validation_due:  # Lightning goes back and finishes a validation that has begun
            validation = loops[VALIDATION]
            done = validation["total"]["completed"]
            validation["current"] = {"ready": 1, "started": 1, "processed": 0, "completed": 0}
            validation["total"] = {"ready": done + 1, "started": done + 1, "processed": done, "completed": done}
            validation["is_last_batch"] = False

    def go_on(self, trainer: L.Trainer) -> None:
        """After on_train_start: what is left of the batch or of the epoch, as far as Lightning will not do it."""
        loop, steps = trainer.fit_loop, trainer.fit_loop.epoch_loop
        if self.validation_due:  # the one that `rewrite` pretended to have begun
            pretended: Any = steps.val_loop.batch_progress.total
            pretended.ready -= 1
            pretended.started -= 1
        if self.in_epoch:
            loop._restarting = False  # else ReduceLROnPlateau rests at the end of this epoch
        if self.in_epoch and _is_max_limit_reached(steps.global_step, steps.max_steps):
            self._end_fit(trainer)
        elif self.batch_ends and self.last_batch and not self.validation_due:
            steps.val_loop._has_run = True  # else another batch is drawn
            steps.update_lr_schedulers("step", update_plateau_schedulers=True)
            steps._batches_that_stepped += 1
        if self.in_step:
            _forget_step(trainer)
        if not self.in_epoch:
            end_restart(trainer)
        if self.epoch_ends and self.last_batch:
            _step_plateau_schedulers(trainer)

    def _end_fit(self, trainer: L.Trainer) -> None:
        """No step is left, so that Lightning would not enter its loops: the end of this batch and of its epoch."""
        loop, steps = trainer.fit_loop, trainer.fit_loop.epoch_loop
        end_restart(trainer)
        assert loop._data_fetcher is not None
        steps._skip_next_val = not self.validation_due
        steps.on_advance_end(loop._data_fetcher)
        loop.on_advance_end()


def end_restart(trainer: L.Trainer) -> None:
    """Lightning's loops begin what comes next anew; they count as restarting until one of their rounds is over."""
    _Loop.restarting.fset(trainer.fit_loop, False)  # type: ignore[attr-defined]


def _step_plateau_schedulers(trainer: L.Trainer) -> None:
    """What follows on_train_epoch_end, with the epoch's number of then."""
    progress = trainer.fit_loop.epoch_progress.current
    progress.completed -= 1
    trainer.fit_loop.epoch_loop.update_lr_schedulers("epoch", update_plateau_schedulers=True)
    progress.completed += 1


def _forget_step(trainer: L.Trainer) -> None:
    """The batch that was asked for has not been counted."""
    steps = trainer.fit_loop.epoch_loop
    steps._restart_stage = RestartStage.NONE
    batches: Any
    for batches in (steps.batch_progress.total, steps.batch_progress.current):
        batches.ready = batches.started = batches.processed = batches.completed
    if not steps._should_accumulate():
        steps._batches_that_stepped -= 1  # Lightning adds one
