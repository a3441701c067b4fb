"""What a run prints: its log, a line of progress now and then, and warnings in one line each."""

from __future__ import annotations

import logging
import sys
import warnings
from typing import Any

import lightning as L

log = logging.getLogger(__name__)

IGNORED_WARNINGS = (
    ".*LeafSpec.*",  # Lightning with recent versions of torch
    ".*smaller than the logging interval.*",
    "Checkpoint directory .* exists and is not empty.*",
    ".*does not have many workers which may be a bottleneck.*",
    ".*GPU available but not used.*",
    ".*No positive samples.*",
    ".*`trainer.fit` will not log to.*",
)
"""Warnings of libraries, as regular expressions, that do not apply to a run, or that users cannot act on."""


class PrintHandler(logging.Handler):
    """Prints log records to the current `sys.stdout`, so that a progress bar can stay below them."""

    def emit(self, record: logging.LogRecord) -> None:
        print(self.format(record), flush=True)


class LogFile(logging.FileHandler):
    """Writes log records to a file; when the disk is full, one line on standard error says so, and the run goes on."""

    _complained = False

    def handleError(self, record: logging.LogRecord) -> None:
        if not self._complained:
            self._complained = True
            print(f"{self.baseFilename} is not continued: {sys.exc_info()[1]}", file=sys.stderr)


def simplify_output() -> None:
    """For the rest of the process: Lightning logs warnings and errors only, and each Python warning is one line of the log."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    logging.getLogger("lightning.fabric").setLevel(logging.WARNING)
    for message in IGNORED_WARNINGS:
        warnings.filterwarnings("ignore", message=message)

    def log_warning(message: Warning | str, category: type[Warning], *_: Any) -> None:
        log.warning("warning: %s", str(message).strip())

    warnings.showwarning = log_warning  # type: ignore[assignment]


class Progress(L.Callback):
    """Logs about ten lines during a fit: the step and the validation accuracy.

    Args:
        name: what is being trained, such as "QAT".
        metric: the metric to show, as the module logs it: a fraction.
        lines: about how many lines in the whole fit.
    """

    def __init__(self, name: str, metric: str = "val/top1", lines: int = 10) -> None:
        self.name, self.metric, self.lines = name, metric, lines
        self._lines_logged = 0

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._lines_logged = 0

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        total = trainer.estimated_stepping_batches
        lines_due = int(trainer.global_step / total * self.lines)
        if trainer.sanity_checking or lines_due <= self._lines_logged:
            return
        self._lines_logged = lines_due
        value = trainer.callback_metrics.get(self.metric)
        accuracy = "" if value is None else f"{self.metric} {100 * float(value):.2f} %"
        log.info("%s, step %s of %s: %s", self.name, f"{trainer.global_step:,}", f"{int(total):,}", accuracy)
