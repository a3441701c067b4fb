"""The callback that ends a fit at a step boundary when a signal was received."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import lightning as L

from qat.experiment.signals import Interrupted, SignalHandler

EXPORT = "export and report"


class CheckpointOnSignal(L.Callback):
    """Writes a checkpoint after the step in which a signal arrives, and raises `Interrupted`. Put it last.

    What runs before the first step and after the last one is interrupted at once, the latter also with a checkpoint. A signal
    that arrives in a validation ends the fit after the step that follows. With several processes it is enough that one has
    received it.

    Args:
        handler: receives the signals.
        folder: where `interrupted.ckpt` is written.
    """

    def __init__(self, handler: SignalHandler, folder: Path) -> None:
        self.handler, self.path = handler, folder / "interrupted.ckpt"

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.handler.install()
        self.handler.stage = "calibration and PTQ"

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.handler.install()  # Lightning's own handlers, registered since, end a validation with status 0 and no checkpoint

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.handler.stage, self.handler.waits = "QAT", True

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        if self._received(trainer):
            trainer.save_checkpoint(self.path)
            self._end()

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.handler.stage = EXPORT
        self.handler.waits = False
        if self._received(trainer):
            self._end()

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """After the last step, the resumed fit need not train again. Several processes cannot agree on it here."""
        if isinstance(exception, Interrupted) and self.handler.stage == EXPORT and trainer.world_size == 1:
            trainer.save_checkpoint(self.path)

    def _received(self, trainer: L.Trainer) -> bool:
        received = self.handler.received is not None
        return received if trainer.world_size == 1 else trainer.strategy.reduce_boolean_decision(received, all=False)

    def _end(self) -> None:
        self.handler.waits = False
        raise Interrupted(self.handler.received or signal.SIGTERM)
