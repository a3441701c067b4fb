"""Files on disk: atomic writing, and the cache folder."""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

TEMPORARY = ".writing-"
"""Prefix of the temporary folders in which unfinished files are written."""


@contextmanager
def folder_beside(path: Path) -> Iterator[Path]:
    """A temporary folder beside `path`: a rename is atomic only within one file system. Missing parent folders are created.

    Raises:
        OSError: `path` is a device or a pipe, which a file would replace, or nothing can be written, also inside the `with`. It
            names `path`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists() and not (path.is_file() or path.is_dir()):
        raise OSError(errno.EINVAL, "Is a device or a pipe, not a file", str(path))
    try:
        with tempfile.TemporaryDirectory(prefix=TEMPORARY, dir=path.parent) as folder:
            yield Path(folder)
    except OSError as error:  # a full disk, for example: the error names no file, or the temporary one
        if error.errno is None or (error.filename is not None and TEMPORARY not in str(error.filename)):
            raise
        raise OSError(error.errno, error.strerror or str(error), str(path)) from error


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """A temporary path that becomes `path` when the `with` block ends, for code that writes a file by name.

    The temporary file is flushed to disk before it is renamed. If the block raises, the old file stays intact and the temporary
    one is deleted.

    Raises:
        OSError: the file cannot be written; it names `path`.
    """
    path = Path(path)
    with folder_beside(path) as folder:
        unfinished = folder / path.name
        yield unfinished
        with unfinished.open("rb+") as file:
            os.fsync(file.fileno())
        unfinished.replace(path)


def write_atomically(path: str | Path, content: str | bytes) -> Path:
    """Write `content` to `path`; a reader sees the old file or the new one, never part of it. Text is UTF-8.

    Returns:
        `path`.

    Raises:
        OSError: the file cannot be written; the old one, if any, is intact.
    """
    with atomic_path(path) as unfinished:
        unfinished.write_bytes(content.encode() if isinstance(content, str) else content)
    return Path(path)


def check_writable(path: str | Path) -> None:
    """Check, before work that takes long, that a file can be written here. Missing folders are created.

    Raises:
        ValueError: it cannot; the message says why.
    """
    path = Path(path)
    if path.is_dir():
        raise ValueError(f"{path} is a folder, so no file of this name can be written: write another name.")
    try:
        with folder_beside(path):
            pass
    except OSError as error:
        raise ValueError(f"{path} cannot be written ({error.strerror or error}): write another path.") from error


def cache_folder() -> Path:
    """The cache folder: QAT_CACHE_DIR of the environment, else ~/.cache/qat. Everything in it can be recreated."""
    return Path(os.environ.get("QAT_CACHE_DIR") or "~/.cache/qat").expanduser()
