"""What a run says while it works: a line now and then, and nothing that nobody asked for."""

from __future__ import annotations

import logging
import warnings
from typing import Any

import lightning as L

log = logging.getLogger(__name__)

UNASKED = (
    ".*LeafSpec.*",  # Lightning with recent versions of torch
    ".*smaller than the logging interval.*",
    "Checkpoint directory .* exists and is not empty.*",
    ".*does not have many workers which may be a bottleneck.*",
    ".*GPU available but not used.*",
    ".*No positive samples.*",
    ".*`trainer.fit` will not log to.*",
)


class PrintHandler(logging.Handler):
    """Prints log records to what is standard output at that time, so that a progress bar can stay below them."""

    def emit(self, record: logging.LogRecord) -> None:
        print(self.format(record), flush=True)


def quiet() -> None:
    """Lightning speaks only of what went wrong, and warnings are one line in the log, without a place in the code."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    logging.getLogger("lightning.fabric").setLevel(logging.WARNING)
    for message in UNASKED:
        warnings.filterwarnings("ignore", message=message)

    def show(message: Warning | str, category: type[Warning], *_: Any) -> None:
        log.warning("warning: %s", str(message).strip())

    warnings.showwarning = show  # type: ignore[assignment]


class Progress(L.Callback):
    """About ten lines a fit: how far it is, and the validation accuracy.

    Args:
        name: what is being trained.
        metric: what the module logs.
    """

    def __init__(self, name: str, metric: str = "val/top1", lines: int = 10) -> None:
        self.name, self.metric, self.lines = name, metric, lines
        self._said = 0

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._said = 0

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        total = trainer.estimated_stepping_batches
        done = trainer.global_step / total
        if trainer.sanity_checking or int(done * self.lines) <= self._said:
            return
        self._said = int(done * self.lines)
        value = trainer.callback_metrics.get(self.metric)
        accuracy = "" if value is None else f"{self.metric} {100 * float(value):.2f} %"
        log.info("%s, step %s of %s: %s", self.name, f"{trainer.global_step:,}", f"{int(total):,}", accuracy)
