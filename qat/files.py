"""Files on disk: atomic writing, and the folder of everything that can be made again."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """A temporary path that becomes `path` when the `with` block ends, for code that writes a file by name.

    The temporary file lies in a folder of its own beside `path`, because a rename is atomic only within one file system,
    and reaches the disk before it is renamed. If the block raises, the old file is intact and the temporary one is gone.
    Missing parent folders are created.

    Raises:
        OSError: the file cannot be written.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".writing-", dir=path.parent) as folder:
        unfinished = Path(folder) / path.name
        yield unfinished
        with unfinished.open("rb+") as file:
            os.fsync(file.fileno())
        unfinished.replace(path)


def write_atomically(path: str | Path, content: str | bytes) -> Path:
    """Write `content` to `path`; a reader sees the old file or the new one, never a part. Text is UTF-8.

    Returns:
        `path`.

    Raises:
        OSError: the file cannot be written; the old one, if any, is intact.
    """
    with atomic_path(path) as unfinished:
        unfinished.write_bytes(content.encode() if isinstance(content, str) else content)
    return Path(path)


def cache_folder() -> Path:
    """The environment's QAT_CACHE_DIR, else ~/.cache/qat. Safe to delete at any time."""
    return Path(os.environ.get("QAT_CACHE_DIR") or "~/.cache/qat").expanduser()
