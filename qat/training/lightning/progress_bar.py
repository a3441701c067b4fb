"""A progress bar for work that takes minutes."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import lightning as L
from lightning.pytorch.callbacks import RichProgressBar
from rich.errors import LiveError
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from qat.ptq import ProgressCallback

log = logging.getLogger(__name__)


def say(line: str) -> None:
    """Tell the user that a part of the work is done: in the log of a program that has one, else on standard output."""
    if log.isEnabledFor(logging.INFO) and log.hasHandlers():
        log.info("%s", line)
    else:
        print(line, flush=True)


def has_terminal() -> bool:
    """Whether standard output is a terminal: a progress bar in a file is noise."""
    return sys.stdout.isatty()


@contextmanager
def progress_bar(title: str) -> Iterator[ProgressCallback]:
    """Inside the `with` block, `on_progress(what, done, total)` moves a bar.

    Nothing is shown without a terminal, or while another bar is on it.
    """
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    bar = Progress(*columns, transient=True, disable=not has_terminal())
    try:
        bar.start()
    except LiveError:
        yield lambda _what, _done, _total: None
        return
    task = bar.add_task(title)
    try:
        yield lambda what, done, total: bar.update(task, description=f"{title}: {what}", completed=done, total=total)
    finally:
        bar.stop()


class EpochBar(RichProgressBar):
    """Lightning's bar, with epochs counted from 1 as in every report. It ends, on a line of its own, with the training."""

    def _get_train_description(self, current_epoch: int) -> str:
        most = self.trainer.max_epochs
        return f"Epoch {current_epoch + 1}{'' if most is None or most < 1 else f' of {most}'} "

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        super().on_train_end(trainer, pl_module)
        end_bar(trainer)


def end_bar(trainer: L.Trainer) -> None:
    """End Lightning's bar, so that what is printed next begins on a line of its own."""
    bar = trainer.progress_bar_callback
    if isinstance(bar, RichProgressBar) and bar.progress is not None:
        bar.progress.stop()
