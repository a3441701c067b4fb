"""A fit that goes on from a checkpoint as if it had never stopped."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import lightning as L
import torch.distributed as dist
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch.callbacks import OnExceptionCheckpoint
from lightning.pytorch.utilities.combined_loader import CombinedLoader
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import Generator, Tensor

from qat.training.checkpoint import logged_metrics as epoch_metrics
from qat.training.checkpoint.atomic_io import AtomicCheckpointIO
from qat.training.checkpoint.best_checkpoints import bring_best_checkpoints
from qat.training.checkpoint.latest import DAMAGES, checkpoint_to_resume, defect
from qat.training.checkpoint.loop_position import LoopPosition, end_restart
from qat.training.checkpoint.random_state import RandomState
from qat.training.checkpoint.replayed_loader import Pass, ReplayedLoader
from qat.training.lightning.hooks import unwrap_hook, wrap_hook

KEY = "qat_resume"
"""Where a checkpoint keeps what Lightning's own part lacks, for each process."""


class Resume:
    """Makes every checkpoint of a fit one from which it goes on bit for bit: order of the data, random numbers, means that are
    being logged, gradients that wait, and whatever was to happen right after the checkpoint was written.

    A callback calls it: `watch` in setup, `record` in on_save_checkpoint, `load` in on_load_checkpoint, `stop_watching` in
    teardown. Everything else it does in hooks of the LightningModule and in the dataloaders.
    """

    def __init__(self) -> None:
        self._begins = False
        self._found: dict[str, Any] | None = None
        self._limits: tuple[int | None, int] = (None, -1)
        self._interrupted: Pass | None = None
        self._before_validation: RandomState | None = None

    def watch(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """From before the train dataloaders are asked for."""
        self._begins = True
        self._found = self._interrupted = self._before_validation = None
        callbacks: list[L.Callback] = trainer.callbacks  # type: ignore[attr-defined]
        careful = any(_writes_on_exception(callback) for callback in callbacks)

        def replayed(hook: Callable[[], Any]) -> Callable[[], Any]:
            def dataloader() -> Any:
                found = hook()
                if not isinstance(found, CombinedLoader):
                    found = CombinedLoader(found, "max_size_cycle")  # as Lightning does
                return ReplayedLoader(found, self._take_interrupted, careful)

            return dataloader

        if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:
            trainer.strategy.checkpoint_io = AtomicCheckpointIO()
        wrap_hook(trainer.strategy.checkpoint_io, "load_checkpoint", _readable)
        # through the data source, and not the user's hook: loaders that were given to `fit` have none
        wrap_hook(trainer.fit_loop._data_source, "dataloader", replayed)
        if careful:
            wrap_hook(module, "on_validation_model_zero_grad", lambda hook: self._noting_validation(trainer, hook))
        wrap_hook(module, "on_train_start", lambda hook: self._going_on(trainer, module, hook))

    def stop_watching(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """What `watch` wrapped is as before."""
        unwrap_hook(trainer.strategy.checkpoint_io, "load_checkpoint")
        unwrap_hook(trainer.fit_loop._data_source, "dataloader")
        unwrap_hook(module, "on_train_start")
        unwrap_hook(module, "on_validation_model_zero_grad")

    def record(self, trainer: L.Trainer, module: L.LightningModule) -> list[dict[str, Any]]:
        """Tensors and plain values, one entry for each process; to be kept in the checkpoint under KEY.

        Nothing, before the train dataloaders were asked for.
        """
        loader = trainer.fit_loop._combined_loader
        if not isinstance(loader, ReplayedLoader):
            return []
        own = self._record(trainer, module, loader)
        if not (dist.is_available() and dist.is_initialized()):
            return [own]
        everybodys: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(everybodys, own)
        return everybodys

    def load(self, trainer: L.Trainer, checkpoint: dict[str, Any]) -> None:
        """Before Lightning restores its loops; their part of the checkpoint is changed in place.

        Only what a fit begins with counts: a tuner restores the state of its start later on.
        """
        if not self._begins:
            return
        bring_best_checkpoints(trainer, checkpoint)
        found = checkpoint.get(KEY)
        if not found:
            return
        if len(found) != trainer.world_size:
            rank_zero_warn(
                f"the checkpoint was written by {len(found)} processes and is resumed by {trainer.world_size}: the data come "
                "in another order than they would have."
            )
            return
        self._found = found[trainer.global_rank]
        warnings.filterwarnings("ignore", message="You're resuming from a checkpoint that ended before the epoch ended")
        LoopPosition(**self._found["where"]).rewrite(checkpoint["loops"]["fit_loop"])
        self._found["loaders"] = checkpoint["loops"]["fit_loop"]["state_dict"].get("combined_loader", [])

    def lift_limits(self, trainer: L.Trainer) -> None:
        """In on_fit_start: Lightning enters its loops although no step is left, so that hooks run and the end is not lost."""
        self._begins = False
        unwrap_hook(trainer.strategy.checkpoint_io, "load_checkpoint")  # another one is meant from now on
        if self._found is None:
            return
        loop, steps = trainer.fit_loop, trainer.fit_loop.epoch_loop
        self._limits = (loop.max_epochs, steps.max_steps)
        if loop.max_epochs is not None and loop.max_epochs >= 0:
            loop.max_epochs += 1
        if steps.max_steps >= 0:
            steps.max_steps += 1

    def _noting_validation(self, trainer: L.Trainer, hook: Callable[[], None]) -> Callable[[], None]:
        def on_validation_model_zero_grad() -> None:
            hook()
            self._before_validation = RandomState.now(_generators(trainer))

        return on_validation_model_zero_grad

    def _going_on(self, trainer: L.Trainer, module: L.LightningModule, hook: Callable[[], None]) -> Callable[[], None]:
        def on_train_start() -> None:
            hook()
            if self._found is not None:
                found, self._found = self._found, None
                self._go_on(trainer, module, found)

        return on_train_start

    def _go_on(self, trainer: L.Trainer, module: L.LightningModule, found: dict[str, Any]) -> None:
        trainer.fit_loop.max_epochs, trainer.fit_loop.epoch_loop.max_steps = self._limits
        where = LoopPosition(**found["where"])
        trainer.fit_loop._last_train_dl_reload_epoch = found["reloaded"]
        self._interrupted = _pass(found)
        epoch_metrics.put_back(trainer, module, found["metrics"])
        parameters = dict(module.named_parameters())
        for name, gradient in found["gradients"].items():
            parameters[name].grad = gradient.to(parameters[name].device)
        RandomState.from_plain(found["random"]).put_back(_generators(trainer))
        where.go_on(trainer)

    def end_epoch(self, trainer: L.Trainer) -> None:
        """In on_train_epoch_end: the epoch that was interrupted is over, whether or not a batch of it was left."""
        self._interrupted = None
        end_restart(trainer)

    def _take_interrupted(self) -> Pass | None:
        found, self._interrupted = self._interrupted, None
        return found

    def _record(self, trainer: L.Trainer, module: L.LightningModule, loader: ReplayedLoader) -> dict[str, Any]:
        where = LoopPosition.now(trainer, loader.asked)
        batches: Any = trainer.fit_loop.epoch_loop.batch_progress.current
        random = loader.before_draw if where.in_step else self._before_validation if where.in_validation else None
        begun = where.in_epoch or (trainer.current_epoch == 0 and loader.asked == 0)
        return {
            "where": asdict(where),
            "random": (random or RandomState.now(loader.generators)).plain(),
            "began": loader.began.plain() if begun and loader.began else None,
            "first_draw": loader.first_draw.plain() if begun and loader.first_draw else None,
            "reloaded": float(trainer.fit_loop._last_train_dl_reload_epoch),
            "batches": batches.processed,
            "metrics": epoch_metrics.collect(trainer, module, where.in_epoch),
            "gradients": _gradients(module) if where.accumulating or not module.automatic_optimization else {},
        }


def _readable(hook: Callable[..., Any]) -> Callable[..., Any]:
    """In place of a damaged checkpoint, the one before it."""

    def load_checkpoint(path: str | Path, *args: Any, **options: Any) -> Any:
        damaged = Path(path).is_file() and defect(Path(path)) in DAMAGES
        return hook(checkpoint_to_resume(path) if damaged else path, *args, **options)

    return load_checkpoint


def _generators(trainer: L.Trainer) -> list[Generator]:
    loader = trainer.fit_loop._combined_loader
    return loader.generators if isinstance(loader, ReplayedLoader) else []


def _pass(found: dict[str, Any]) -> Pass:
    if found["began"] is None:
        return Pass()
    first = found["first_draw"]
    return Pass(
        began=RandomState.from_plain(found["began"]),
        first_draw=None if first is None else RandomState.from_plain(first),
        batches=found["batches"],
        then=RandomState.from_plain(found["random"]) if found["where"]["in_step"] else None,
        loaders=found["loaders"],
    )


def _gradients(module: L.LightningModule) -> dict[str, Tensor]:
    return {name: p.grad.detach().cpu().clone() for name, p in module.named_parameters() if p.grad is not None}


def _writes_on_exception(callback: L.Callback) -> bool:
    return isinstance(callback, OnExceptionCheckpoint) or bool(getattr(callback, "save_on_exception", False))
