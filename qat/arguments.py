"""Type checks of arguments that several public functions share."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable
from numbers import Integral, Real
from pathlib import Path
from typing import Any, TypeGuard

from torch import nn

from qat.messages import shown


def check_network(value: object, name: str = "model") -> None:
    """Refuse a value that is not a network.

    Raises:
        ValueError: it is not a torch.nn.Module.
    """
    if not isinstance(value, nn.Module):
        raise ValueError(f"{name}={shown(value)} is not a torch.nn.Module: write the network itself, as MyNetwork().")


def as_path(value: object, name: str = "path") -> Path:
    """The value as a Path, with `~` expanded to the home folder.

    Raises:
        ValueError: it is not a path.
    """
    if not isinstance(value, str | os.PathLike):
        raise ValueError(f"{name}={shown(value)} is not a path: write a string or a pathlib.Path.")
    return Path(value).expanduser()


def is_number(value: object) -> TypeGuard[float]:
    """Whether a value is a finite real number; flags and texts are not.

    >>> is_number(0.5), is_number(True), is_number("0.5"), is_number(float("nan"))
    (True, False, False, False)
    """
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)


def is_whole_number(value: object, lowest: int = 1) -> bool:
    """Whether a value is a whole number of at least `lowest`.

    >>> is_whole_number(1), is_whole_number(0), is_whole_number(2.0), is_whole_number(True)
    (True, False, False, False)
    """
    return isinstance(value, Integral) and not isinstance(value, bool) and int(value) >= lowest


def check_kind(name: str, value: object, kinds: tuple[Any, ...], remedy: str) -> None:
    """Refuse an option of another kind than a function takes.

    Args:
        name: of the option.
        value: as it was given.
        kinds: its types; True and False are no numbers.
        remedy: what to write instead, for the message.

    Raises:
        ValueError: it is of another kind.
    """
    is_stray_bool = isinstance(value, bool) and bool not in kinds
    if is_stray_bool or not isinstance(value, kinds):
        raise ValueError(f"{name}={shown(value)} is not possible: write {remedy}.")


def check_flag(name: str, value: object) -> None:
    """Refuse what is neither True nor False: "no" would count as True.

    Raises:
        ValueError: it is not.
    """
    check_kind(name, value, (bool,), "True or False")


def check_count(name: str, value: object, lowest: int = 1) -> None:
    """Refuse what is no whole number of at least `lowest`.

    Raises:
        ValueError: it is not.
    """
    if not is_whole_number(value, lowest):
        raise ValueError(f"{name}={shown(value)} is not possible: write a whole number, {lowest} or more.")


def check_function(name: str, value: object, what: str) -> None:
    """Refuse what cannot be called. what: the function that is meant, for the message.

    Raises:
        ValueError: it cannot.
    """
    check_kind(name, value, (Callable,), f"a function {what}")


def classes_in(value: object, name: str = "allow") -> list[Any]:
    """The classes and functions in a list.

    Raises:
        ValueError: it is not a list, or holds something else.
    """
    found = list(value) if isinstance(value, Iterable) and not isinstance(value, str | type) else [None]
    if not all(map(callable, found)):
        raise ValueError(f"{name}={shown(value)} is not a list of classes: write {name}=[MyClass].")
    return found
