"""What a run or a sweep has found, as plain data for whoever started it: `qat train --json`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

Receiver = Callable[[Mapping[str, Any]], None]

_RECEIVER: ContextVar[Receiver | None] = ContextVar("receiver", default=None)


@contextmanager
def answering(receiver: Receiver | None) -> Iterator[None]:
    """Inside the `with` block, `receiver` is called once with what was found."""
    token = _RECEIVER.set(receiver)
    try:
        yield
    finally:
        _RECEIVER.reset(token)


def answer(content: Mapping[str, Any]) -> None:
    """Hand over what was found, if it is wanted. Only the first counts: an error that follows is told by the exit status."""
    receiver = _RECEIVER.get()
    if receiver is not None:
        _RECEIVER.set(None)
        receiver(content)


def answer_error(text: str, status: int) -> None:
    """Hand over why nothing was found. status: the exit status that follows."""
    answer({"error": text, "status": status})


def answer_run(folder: Path) -> None:
    """Hand over the results that a run left in its folder."""
    if _RECEIVER.get() is None:
        return
    from qat.report import read_results

    results = read_results(folder / "results.json")
    answer({"folder": str(folder), "report": str(folder / "report.html"), "results": results.to_dict()})
