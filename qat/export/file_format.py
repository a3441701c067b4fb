"""What the formats of files tell of damage, without their runtimes."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path

from qat.export.verification import DamagedFileError
from qat.reading.archive import check_members
from qat.reading.malformed import malformed


def check_format(path: Path) -> None:
    """Check that a file is whole, as far as its format says: the archive of .pt2, the headers of .pte and .tflite.

    Raises:
        DamagedFileError: it is not.
    """
    if (check := CHECKS.get(path.suffix)) is not None:
        with malformed(path, f"is not a {path.suffix} file, or is damaged", "write it again", DamagedFileError):
            check(path)


def _check_archive(path: Path) -> None:
    with path.open("rb") as file:
        check_members(file)


def _check_tflite(path: Path) -> None:
    _check_flatbuffer(path.read_bytes(), b"TFL")


def _check_pte(path: Path) -> None:
    """The extended header says how long the program and the segments behind it are."""
    content = path.read_bytes()
    _check_flatbuffer(content, b"ET")
    magic, length, program, segments = struct.unpack_from("<4sIQQ", content, 8)
    if magic != b"eh00":
        return
    behind = struct.unpack_from("<Q", content, 32)[0] if length >= 32 else 0
    if len(content) < max(program, segments + behind):
        raise ValueError(f"it has {len(content):,} bytes of {max(program, segments + behind):,}")


def _check_flatbuffer(content: bytes, identifier: bytes) -> None:
    """The identifier, and the root table and all that it points to inside the file."""
    if not content[4:8].startswith(identifier):
        raise ValueError(f"it does not begin as such files do, with {identifier.decode()}")
    (root,) = struct.unpack_from("<I", content, 0)
    (distance,) = struct.unpack_from("<i", content, root)
    (size,) = struct.unpack_from("<H", content, root - distance)
    struct.unpack_from(f"<{size}B", content, root - distance)


CHECKS: dict[str, Callable[[Path], None]] = {".pt2": _check_archive, ".pte": _check_pte, ".tflite": _check_tflite}
