"""Type checks of arguments that several public functions share."""

from __future__ import annotations

import os
from pathlib import Path

from torch import nn

from qat.messages import type_of


def check_network(value: object, name: str = "model") -> None:
    """Refuse a value that is not a network.

    Raises:
        ValueError: it is not a torch.nn.Module.
    """
    if not isinstance(value, nn.Module):
        raise ValueError(f"{name}={_shown(value)} is not a torch.nn.Module: write the network itself, as MyNetwork().")


def as_path(value: object, name: str = "path") -> Path:
    """The value as a Path, with `~` expanded to the home folder.

    Raises:
        ValueError: it is not a path.
    """
    if not isinstance(value, str | os.PathLike):
        raise ValueError(f"{name}={_shown(value)} is not a path: write a string or a pathlib.Path.")
    return Path(value).expanduser()


def _shown(value: object) -> str:
    shown = repr(value)
    return shown if len(shown) <= 60 and "\n" not in shown else type_of(value)
