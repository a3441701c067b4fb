"""Dialects of ONNX: one integer model, written as the runtime that reads the file wants it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import onnx

from qat.export.onnx.portable import make_portable
from qat.export.onnx.proof import dialect_name
from qat.export.onnx.tensorrt import make_tensorrt
from qat.export.verification import DamagedFileError
from qat.integer import Encoding
from qat.messages import instead_of
from qat.reading.malformed import malformed


@dataclass(frozen=True)
class Dialect:
    """How a file is written.

    Attributes:
        name: of the target whose dialect it is.
        packs_weights: whether weights of few bits are stored in 2 and 4 bits, and widened when the file is loaded.
        rewrite: changes a file of the default dialect in place, given the encodings of its sites by the names of their
            tensors; None: nothing is changed.
        exact: whether ONNX Runtime computes the file in integers, to the last code. Otherwise a code may differ by one step,
            where the sums of floats are rounded.
    """

    name: str
    packs_weights: bool = True
    rewrite: Callable[[onnx.ModelProto, Mapping[str, Encoding]], None] | None = None
    exact: bool = True


DEFAULT = Dialect("onnxruntime")
DIALECTS = {
    dialect.name: dialect
    for dialect in (
        DEFAULT,
        Dialect("portable", packs_weights=False, rewrite=make_portable),
        Dialect("tensorrt", packs_weights=False, rewrite=make_tensorrt, exact=False),
    )
}


def dialect_of(name: str) -> Dialect:
    """The dialect of a target.

    Raises:
        ValueError: no ONNX file is written for a target of this name.
    """
    if not isinstance(name, str) or name not in DIALECTS:
        raise ValueError(f"target={name!r} is not a dialect of ONNX: {instead_of(name, DIALECTS)}")
    return DIALECTS[name]


def dialect_of_file(path: str | Path, file: onnx.ModelProto) -> Dialect:
    """The dialect that a file names in its metadata.

    Raises:
        DamagedFileError: there is no such dialect.
    """
    with malformed(path, "has metadata that cannot be read", "write it again", DamagedFileError):
        return dialect_of(dialect_name(file))
