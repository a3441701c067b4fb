"""Whatever a damaged or foreign file provokes becomes one sentence that names the file."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def malformed(path: str | Path, what: str, remedy: str, kind: type[ValueError] = ValueError) -> Iterator[None]:
    """Inside the `with` block, an error is the file's fault.

    Errors that name the file already stay as they are, and so do those of the operating system (no such file, no permission).

    Args:
        path: the file.
        what: the end of the sentence "PATH ...", as "is not a checkpoint".
        remedy: what to do, as "write it again".
        kind: the class of the error.

    Raises:
        ValueError: anything else was raised inside the block.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, OSError) and error.filename is not None:
            raise
        if isinstance(error, ValueError) and str(path) in str(error):
            raise
        raise kind(f"{path} {what} ({reason(error)}): {remedy}.") from error


def reason(error: BaseException, width: int = 200) -> str:
    """The message of an error in one short line, which says something even where the message is a bare key."""
    text = str(error)
    if isinstance(error, KeyError):
        text = f"{text} is missing"
    elif isinstance(error, MemoryError) or not text:
        text = type(error).__name__
    return textwrap.shorten(text, width, placeholder=" ...").rstrip(".")
