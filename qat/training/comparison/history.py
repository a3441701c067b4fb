"""The history of a fit: curves with one value per epoch, and the duration."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import lightning as L

from qat.report import Training

CURVES = ("val_metric", "val_loss", "train_loss")


@dataclass
class History:
    """Collects metrics epoch by epoch. The names are those under which the LightningModule logs them."""

    val_metric_name: str
    val_loss_name: str
    train_loss_name: str
    val_metric: list[float | None] = field(default_factory=list)
    val_loss: list[float | None] = field(default_factory=list)
    train_loss: list[float | None] = field(default_factory=list)
    started: float | None = None
    seconds: float = 0.0
    """Duration of the training up to `start`, that of the interrupted fits, or up to `stop`."""

    def start(self) -> None:
        """Start the clock, at the first step: what other callbacks do before it is not training."""
        if self.started is None:
            self.started = time.perf_counter()

    def end_epoch(self, trainer: L.Trainer) -> None:
        """Append the last values that were logged; None before the first."""
        for name, curve in (
            (self.val_metric_name, self.val_metric),
            (self.val_loss_name, self.val_loss),
            (self.train_loss_name, self.train_loss),
        ):
            value = trainer.callback_metrics.get(name)
            curve.append(None if value is None else float(value))

    def stop(self) -> None:
        """Stop the clock: the fit is over."""
        self.seconds = self._elapsed()
        self.started = None

    def state(self) -> dict[str, Any]:
        """The state for a checkpoint, in plain numbers."""
        return {**{name: list(getattr(self, name)) for name in CURVES}, "seconds": self._elapsed()}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue from what `state` returned in the interrupted fit."""
        for name in (*CURVES, "seconds"):
            setattr(self, name, state[name])

    def _elapsed(self) -> float:
        return self.seconds + (0.0 if self.started is None else time.perf_counter() - self.started)

    def summarize(self, trainer: L.Trainer, best_epoch: int, is_accuracy: bool = True) -> Training:
        """The record for the report.

        Args:
            best_epoch: counted from 1, as the record does; 0 if there was no checkpoint.
            is_accuracy: whether the validation metric is a fraction.
        """
        validated = any(value is not None for value in self.val_metric)
        return Training(
            epochs=len(self.train_loss),
            steps=trainer.global_step,
            seconds=self.seconds,
            best_epoch=best_epoch if validated else 0,
            val_top1=self.val_metric if validated and is_accuracy else [],
            val_values=[] if is_accuracy or not validated else self.val_metric,
            val_loss=self.val_loss if validated else [],
            train_loss=self.train_loss,
        )
