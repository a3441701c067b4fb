"""A file against its model written anew, in the same way."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx

from qat.export.onnx.dialect import Dialect, dialect_of_file
from qat.export.onnx.example_inputs import FreeAxes, as_written
from qat.export.onnx.onnx_file import read_onnx
from qat.export.onnx.proof import differences_of_records, example_shapes, free_axes
from qat.export.onnx.stored import constants_in, stored_differences
from qat.export.verification import DamagedFileError, Verification
from qat.reading.malformed import malformed


def compare_stored(
    path: str | Path,
    write: Callable[[Any, FreeAxes | None, Dialect], onnx.ModelProto],
    examples: tuple[Any, ...],
    stateless: bool = True,
) -> Verification:
    """What the file stores differently. Nothing is run but the model.

    Args:
        path: the file.
        write: from example inputs, free axes and a dialect to the model's file.
        examples: inputs of the model.
        stateless: whether running the model leaves it as it is.

    Raises:
        DamagedFileError: the file does not say how it was written.
    """
    found = read_onnx(path)
    with malformed(path, "has metadata that cannot be read", "write it again", DamagedFileError):
        examples = as_written(examples, example_shapes(found))
        axes, dialect = free_axes(found), dialect_of_file(path, found)
    expected = write(examples, axes, dialect)
    with malformed(path, "cannot be compared with its integer model", "write it again", DamagedFileError):
        stored = stored_differences(expected, found) or differences_of_records(expected, found, stateless)
    result = Verification(constants_compared=constants_in(expected), stored=stored)
    result.sum_up()
    return result
