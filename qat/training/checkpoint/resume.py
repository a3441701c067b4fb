"""A fit that continues from a checkpoint as if it had never stopped."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from typing import Any

import lightning as L
import torch.distributed as dist
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch.callbacks import OnExceptionCheckpoint
from lightning.pytorch.utilities.combined_loader import CombinedLoader
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import Generator, Tensor

from qat.reading.malformed import malformed
from qat.training.checkpoint.atomic_io import AtomicCheckpointIO
from qat.training.checkpoint.best_checkpoints import copy_best_checkpoints
from qat.training.checkpoint.checked_reading import check_reading, stop_checking
from qat.training.checkpoint.logged_metrics import record_logged_metrics, restore_logged_metrics
from qat.training.checkpoint.loop_position import LoopPosition
from qat.training.checkpoint.not_exact import warn_if_not_exact
from qat.training.checkpoint.replayed_loader import InterruptedEpoch, ReplayedLoader
from qat.training.lightning.hooks import run_after, unwrap_hook, wrap_hook
from qat.training.lightning.private_api import (
    batches_ahead,
    draw_ahead_again,
    end_restart,
    get_reload_epoch,
    set_reload_epoch,
    train_data_source,
    train_loader,
)
from qat.training.lightning.random_state import RandomState

RESUME_KEY = "qat_resume"
"""Key under which a checkpoint keeps what Lightning's part of it lacks, with one entry for each process."""


class Resume:
    """Makes every checkpoint of a fit one from which the fit continues bit for bit.

    That includes the order of the data, random numbers, means that are being logged, gradients that wait, and whatever
    was to happen right after the checkpoint was written.

    A callback calls `attach` in setup, `extend_limits` in on_fit_start, `end_epoch` in on_train_epoch_end, `record` in
    on_save_checkpoint, `load` in on_load_checkpoint and `detach` in teardown. The rest happens in wrapped hooks of the
    LightningModule and in the dataloaders.
    """

    def __init__(self) -> None:
        self._fit_begins = False
        self._record: dict[str, Any] | None = None
        """What the checkpoint recorded for this process, until the fit has continued from there."""
        self._limits: tuple[int | None, int] = (None, -1)
        """`max_epochs` and `max_steps` of the Trainer, while they are extended."""
        self._interrupted: InterruptedEpoch | None = None
        self._before_validation: RandomState | None = None
        self._draws_ahead = False
        """Whether the first epoch has yet to draw ahead again, as others do when they begin."""

    def attach(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Wrap the hooks, before the train dataloaders are requested."""
        self._fit_begins = True
        self._record = self._interrupted = self._before_validation = None
        self._draws_ahead = False
        callbacks: list[L.Callback] = trainer.callbacks  # type: ignore[attr-defined]
        saves_on_exception = any(_saves_on_exception(callback) for callback in callbacks)
        if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:
            trainer.strategy.checkpoint_io = AtomicCheckpointIO()
        check_reading(trainer, replaces_damaged=True)
        # through the data source and not the user's hook: loaders that were given to `fit` have none
        wrap_hook(train_data_source(trainer), "dataloader", partial(self._replayed, saves_on_exception))
        if saves_on_exception:
            run_after(module, "on_validation_model_zero_grad", partial(self._note_validation, trainer))
        run_after(module, "on_train_start", partial(self._resume, trainer, module))
        run_after(module, "on_train_epoch_start", partial(self._begin_epoch, trainer))

    def detach(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Undo `attach`."""
        stop_checking(trainer)
        unwrap_hook(train_data_source(trainer), "dataloader")
        unwrap_hook(module, "on_train_start")
        unwrap_hook(module, "on_train_epoch_start")
        unwrap_hook(module, "on_validation_model_zero_grad")

    # Writing a checkpoint --------------------------------------------------------------------------------------------

    def record(self, trainer: L.Trainer, module: L.LightningModule) -> list[dict[str, Any]]:
        """What a checkpoint keeps under `RESUME_KEY`: tensors and plain values, one entry for each process.

        Empty before the train dataloaders were requested.
        """
        loader = train_loader(trainer)
        if not isinstance(loader, ReplayedLoader):
            return []
        record = self._record_process(trainer, module, loader)
        if not (dist.is_available() and dist.is_initialized()):
            return [record]
        records: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(records, record)
        return records

    def _record_process(self, trainer: L.Trainer, module: L.LightningModule, loader: ReplayedLoader) -> dict[str, Any]:
        position = LoopPosition.current(trainer, loader.requested - batches_ahead(trainer))
        batches: Any = trainer.fit_loop.epoch_loop.batch_progress.current
        before_validation = self._before_validation if position.in_validation else None
        random = loader.before_draw if position.in_step else before_validation
        begun = position.in_epoch or (trainer.current_epoch == 0 and loader.requested == 0)
        gradients_wait = position.accumulating or not module.automatic_optimization
        return {  # old checkpoints have these keys, too
            "where": asdict(position),
            "random": (random or RandomState.current(loader.generators)).to_plain(),
            "began": loader.at_start.to_plain() if begun and loader.at_start else None,
            "first_draw": loader.at_first_batch.to_plain() if begun and loader.at_first_batch else None,
            "drawn_ahead": loader.before_draw.to_plain() if loader.before_draw and batches_ahead(trainer) else None,
            "reloaded": get_reload_epoch(trainer),
            "batches": batches.processed,
            "accumulated": trainer.accumulate_grad_batches,
            "metrics": record_logged_metrics(trainer, module, position.in_epoch),
            "gradients": _gradients(module) if gradients_wait else {},
        }

    # Continuing from a checkpoint ------------------------------------------------------------------------------------

    def load(self, trainer: L.Trainer, checkpoint: dict[str, Any]) -> None:
        """Read a checkpoint before Lightning restores its loops, and change the loops' part of it in place.

        Only a checkpoint that a fit begins with counts: later, a tuner restores the state that the fit began with.
        """
        if not self._fit_begins:
            return
        copy_best_checkpoints(trainer, checkpoint)
        records = checkpoint.get(RESUME_KEY)
        if not records:
            return
        if len(records) != trainer.world_size:
            rank_zero_warn(
                f"the checkpoint was written by {len(records)} processes and is resumed by {trainer.world_size}: the data come "
                "in another order than they would have."
            )
            return
        loops = checkpoint["loops"]["fit_loop"]
        loader_states = loops["state_dict"].get("combined_loader", [])
        self._record = {**records[trainer.global_rank], "loaders": loader_states}
        warnings.filterwarnings("ignore", message="You're resuming from a checkpoint that ended before the epoch ended")
        LoopPosition(**self._record["where"]).rewrite(loops)

    def extend_limits(self, trainer: L.Trainer) -> None:
        """Make Lightning enter its loops even if no step is left, so that hooks run and the end of the fit is not lost."""
        self._fit_begins = False
        check_reading(trainer)  # from now on other checkpoints are loaded
        if self._record is None:
            return
        loop, steps = trainer.fit_loop, trainer.fit_loop.epoch_loop
        self._limits = (loop.max_epochs, steps.max_steps)
        if loop.max_epochs is not None and loop.max_epochs >= 0:
            loop.max_epochs += 1
        if steps.max_steps >= 0:
            steps.max_steps += 1

    def _resume(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """After on_train_start, restore what Lightning has not restored."""
        if self._record is None:
            return
        record, self._record = self._record, None
        with malformed(
            trainer.ckpt_path or "the checkpoint", "does not fit this run", "give one that this fit has written"
        ):
            self._restore(trainer, module, record)

    def _restore(self, trainer: L.Trainer, module: L.LightningModule, record: dict[str, Any]) -> None:
        trainer.fit_loop.max_epochs, trainer.fit_loop.epoch_loop.max_steps = self._limits
        set_reload_epoch(trainer, record["reloaded"])
        if record["where"]["in_epoch"]:  # GradientAccumulationScheduler sets it when an epoch begins, and this one has
            trainer.accumulate_grad_batches = record.get("accumulated", trainer.accumulate_grad_batches)
        self._interrupted = InterruptedEpoch.from_record(record)
        if record["where"]["in_epoch"]:
            draw_ahead_again(trainer)
        elif batches_ahead(trainer):
            self._draws_ahead = True
        restore_logged_metrics(trainer, module, record["metrics"])
        parameters = dict(module.named_parameters())
        for name, gradient in record["gradients"].items():
            parameters[name].grad = gradient.to(parameters[name].device)
        RandomState.from_plain(record["random"]).restore(_generators(trainer))
        position = LoopPosition(**record["where"])
        position.resume(trainer)
        warn_if_not_exact(trainer, module, position, record["batches"])

    def _begin_epoch(self, trainer: L.Trainer) -> None:
        if self._draws_ahead:
            self._draws_ahead = False
            draw_ahead_again(trainer)

    def end_epoch(self, trainer: L.Trainer) -> None:
        """The interrupted epoch is over, whether or not a batch of it was left."""
        interrupted, loader = self._take_interrupted(), train_loader(trainer)
        if interrupted is not None and isinstance(loader, ReplayedLoader):
            loader.end_pass(interrupted)
        end_restart(trainer)

    # Wrapped hooks ---------------------------------------------------------------------------------------------------

    def _replayed(self, saves_on_exception: bool, hook: Callable[[], Any]) -> Callable[[], Any]:
        def dataloader() -> ReplayedLoader:
            loaders = hook()
            if not isinstance(loaders, CombinedLoader):
                loaders = CombinedLoader(loaders, "max_size_cycle")  # as Lightning does
            return ReplayedLoader(loaders, self._take_interrupted, saves_on_exception)

        return dataloader

    def _take_interrupted(self) -> InterruptedEpoch | None:
        interrupted, self._interrupted = self._interrupted, None
        return interrupted

    def _note_validation(self, trainer: L.Trainer) -> None:
        self._before_validation = RandomState.current(_generators(trainer))


def _generators(trainer: L.Trainer) -> list[Generator]:
    loader = train_loader(trainer)
    return loader.generators if isinstance(loader, ReplayedLoader) else []


def _gradients(module: L.LightningModule) -> dict[str, Tensor]:
    return {name: p.grad.detach().cpu().clone() for name, p in module.named_parameters() if p.grad is not None}


def _saves_on_exception(callback: L.Callback) -> bool:
    return isinstance(callback, OnExceptionCheckpoint) or bool(getattr(callback, "save_on_exception", False))
