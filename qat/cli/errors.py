"""Mistakes of the user as one sentence, and the exit status that goes with them."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

GOOD, FAILED, USAGE = 0, 1, 2
"""Exit statuses: done and verified; it failed or differs; the command line asks for something that does not exist."""
DEBUG = "QAT_DEBUG"
"""The environment variable that shows tracebacks."""


class UsageError(ValueError):
    """The command line asks for something that does not exist or does not go together."""


@contextmanager
def usage_errors() -> Iterator[None]:
    """Inside the `with` block, errors are the user's: a name, a file or a number that is not there or not possible."""
    try:
        yield
    except UsageError:
        raise
    except (ValueError, OSError, ImportError) as error:
        raise UsageError(sentence(error)) from error


@contextmanager
def one_line_warnings() -> Iterator[None]:
    """Inside the `with` block, a warning is one line on standard error, and each is shown once."""

    def show(message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> None:
        text = " ".join(str(message).split())
        if text not in shown and not issubclass(category, DeprecationWarning | FutureWarning):
            shown.add(text)
            print(f"warning: {text}", file=sys.stderr)

    shown: set[str] = set()
    before = warnings.showwarning
    warnings.showwarning = show
    try:
        yield
    finally:
        warnings.showwarning = before


def sentence(error: BaseException) -> str:
    """The message of an error in one line; with its type, if the message was not written for users.

    >>> sentence(ValueError("bits=9 is not possible:\\n  write 8."))
    'bits=9 is not possible: write 8.'
    """
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    text = " ".join(str(error).split())
    if len(text) > 600:
        text = f"{text[:600]} ..."
    ours = type(error).__module__.partition(".")[0] == "qat"
    meant = ours or isinstance(error, ValueError | OSError | ImportError)
    return text if meant and text else f"{type(error).__name__}: {text} ({DEBUG}=1 shows where)"


def with_kind(error: BaseException) -> str:
    """The message of an error that is not qat's own in one line, behind its type.

    >>> with_kind(KeyError("x")), with_kind(AssertionError())
    ("KeyError: 'x'", 'AssertionError')
    """
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}"[:600] if text else type(error).__name__


def status_of(error: Exception, command: str) -> int:
    """Print an error as one sentence and return the exit status. With QAT_DEBUG=1 it is raised.

    Args:
        error: what ended the command.
        command: its name.
    """
    if os.environ.get(DEBUG) == "1":
        raise error
    print(f"qat {command}: error: {sentence(error)}", file=sys.stderr)
    return USAGE if isinstance(error, UsageError) else FAILED
