"""A progress bar for work that takes minutes."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from rich.errors import LiveError
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from qat.ptq import ProgressCallback


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
