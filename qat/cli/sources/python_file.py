"""`file.py:function`: something of the user's own."""

from __future__ import annotations

import importlib.util
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from inspect import ismodule
from pathlib import Path
from typing import Any

from qat.cli.errors import UsageError, with_kind

SPELLING = r"(?P<file>.+\.py):(?P<name>\w+)"


def names_python(text: str) -> bool:
    """Whether this names something in a Python file."""
    return re.fullmatch(SPELLING, text) is not None or text.endswith(".py")


@contextmanager
def users_code(what: str, remedy: str = "") -> Iterator[None]:
    """Inside the `with` block runs what the user wrote, so whatever ends it is the user's to mend.

    Args:
        what: begins the sentence, as "net.py cannot be run".
        remedy: ends it, as ": write a function that needs no arguments".

    Raises:
        UsageError: something was raised, or the program was to end.
    """
    try:
        yield
    except UsageError:
        raise
    except (Exception, SystemExit) as error:
        raise UsageError(f"{what} ({with_kind(error)}){remedy}.") from error


def from_python_file(text: str) -> Any:
    """What `file.py:name` names. The file runs, with its own folder importable.

    Raises:
        UsageError: there is no such file or name, or the file fails.
    """
    found = re.fullmatch(SPELLING, text)
    if found is None:
        raise UsageError(f"{text} does not say which function: write {text}:NAME.")
    path = Path(found["file"]).expanduser()
    if not path.is_file():
        raise UsageError(f"{path} does not exist: write the path of a Python file and the name of a function in it.")
    folder = str(path.resolve().parent)
    if folder not in sys.path:
        sys.path.append(folder)
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules.get(path.stem)
    if module is None or getattr(module, "__file__", None) != str(path):
        module = importlib.util.module_from_spec(spec)
        sys.modules[path.stem] = module  # classes say where they are defined
        try:
            with users_code(f"{path} cannot be run"):
                spec.loader.exec_module(module)
        except UsageError:
            del sys.modules[path.stem]
            raise
    if not hasattr(module, found["name"]):
        public = ", ".join(name for name, x in vars(module).items() if name[0] != "_" and not ismodule(x)) or "nothing"
        raise UsageError(f"{path} has no {found['name']!r}: it has {public}.")
    return getattr(module, found["name"])


def called(text: str, what: str) -> Any:
    """What `file.py:function` returns; what is not a function, such as a network, is itself the answer.

    Args:
        text: names the function.
        what: what it is for, for the message.

    Raises:
        UsageError: it cannot be called without arguments.
    """
    function = from_python_file(text)
    from torch import nn

    if isinstance(function, nn.Module) or not callable(function):
        return function
    with users_code(f"{text}() gives no {what}", ": write a function that needs no arguments"):
        return function()
