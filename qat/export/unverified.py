"""The name of a file, which it has only after it passed its verification."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from qat.files import folder_beside


def unverified_path(path: Path) -> Path:
    """The name of a file that has not passed its verification: `model.unverified.onnx` of `model.onnx`."""
    return path.with_name(f"{path.stem}.unverified{path.suffix}")


@dataclass
class Unverified:
    """A file that is being verified. passed: set it when it has."""

    path: Path
    passed: bool = False


@contextmanager
def named_when_verified(path: Path) -> Iterator[Unverified]:
    """A file to write and verify inside the `with`, after which it is called `path` if it passed, else `unverified_path`.

    Until then it lies where no other process writes, so that what gets the name is what was verified.

    Raises:
        OSError: the file cannot be written; it names `path`.
    """
    with folder_beside(path) as folder:
        file = Unverified(folder / path.name)
        try:
            yield file
        finally:
            if file.path.exists():
                file.path = file.path.replace(path if file.passed else unverified_path(path))
        if file.passed:
            unverified_path(path).unlink(missing_ok=True)  # an earlier one
