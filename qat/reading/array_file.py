"""numpy's files: no objects in them, and arrays of at most a fixed multiple of their size."""

from __future__ import annotations

import math
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qat.reading.archive import check_members
from qat.reading.malformed import malformed

GROWTH = 16
"""How many times the size of a compressed file its arrays may take."""
HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}


def read_arrays(path: Path) -> NDArray[Any] | dict[str, NDArray[Any]]:
    """The array in a .npy file, or the arrays in a .npz file by name.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is damaged, holds objects, or declares more than it has.
    """
    with path.open("rb") as file, malformed(path, "holds no arrays that can be read", "write it again"):
        if path.suffix == ".npy":
            return _array(file, path.stat().st_size)
        check_members(file, GROWTH)
        arrays = {}
        with zipfile.ZipFile(file) as archive:
            for member in archive.infolist():
                with archive.open(member) as part:
                    arrays[member.filename.removesuffix(".npy")] = _array(part, member.file_size)
        return arrays


def _array(file: Any, size: int) -> NDArray[Any]:
    """The array in an open file of `size` bytes."""
    version = np.lib.format.read_magic(file)
    if version not in HEADERS:
        raise ValueError(f"format {version}")
    shape, is_transposed, dtype = HEADERS[version](file)
    if dtype.hasobject or dtype.itemsize * math.prod(shape) > size or any(n < 0 for n in shape):
        raise ValueError(f"an array of shape {shape} of {dtype} in {size:,} bytes")
    content = np.frombuffer(file.read(), dtype=dtype)[: math.prod(shape)].copy()
    return content.reshape(shape, order="F" if is_transposed else "C")
