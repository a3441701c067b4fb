"""Dialects of ONNX: the integer model is one, how a file says it is a matter of who reads it."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import dataclass

import onnx

from qat.export.onnx.portable import make_portable


@dataclass(frozen=True)
class Dialect:
    """How a file is written.

    Attributes:
        name: of the target whose dialect it is.
        packs_weights: whether weights of few bits are stored in 2 and 4 bits, and widened when the file is loaded.
        rewrite: changes the file of the default dialect in place; None: nothing is changed.
    """

    name: str
    packs_weights: bool = True
    rewrite: Callable[[onnx.ModelProto], None] | None = None


DEFAULT = Dialect("onnxruntime")
DIALECTS = {d.name: d for d in (DEFAULT, Dialect("portable", packs_weights=False, rewrite=make_portable))}


def dialect_of(name: str) -> Dialect:
    """The dialect of a target.

    Raises:
        ValueError: no ONNX file is written for a target of this name.
    """
    if name not in DIALECTS:
        close = difflib.get_close_matches(name, DIALECTS, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"write one of {', '.join(DIALECTS)}."
        raise ValueError(f"target={name!r} is no dialect of ONNX: {hint}")
    return DIALECTS[name]
