"""The checkpoint to resume: the newest that is not damaged."""

from __future__ import annotations

import pickletools
import warnings
from pathlib import Path
from typing import Any, NamedTuple

from qat.arguments import as_path
from qat.reading.archive import check_archive

DAMAGES = ("is empty", "is damaged")
"""Defects of a checkpoint that was not written completely or was changed afterwards."""
NUMBER_AND_TEXT_OPCODES = ("BININT", "BININT1", "BININT2", "LONG1", "INT", "BINUNICODE", "SHORT_BINUNICODE")
"""Instructions of a pickle that push a number or a text on its stack."""


class ReadableCheckpoint(NamedTuple):
    """A checkpoint without defects. step: optimizer steps; written: modification time of the file."""

    step: int
    written: float
    path: Path


def latest_checkpoint(folder: str | Path) -> Path:
    """The readable checkpoint (`*.ckpt`) with the most steps in `folder` or in its subfolder `checkpoints`.

        trainer.fit(model, datamodule=data, ckpt_path=qat.latest_checkpoint("outputs/run"))

    Checkpoints that cannot be read are left out with a warning. Objects in the files are not loaded, so nothing is executed.

    Args:
        folder: the folder of a run, or the folder that holds its checkpoints.

    Raises:
        FileNotFoundError: there is no checkpoint.
        ValueError: none is readable; the message says why.
    """
    folder = as_path(folder, "folder")
    paths = [*sorted(folder.glob("*.ckpt")), *sorted((folder / "checkpoints").glob("*.ckpt"))]
    if not paths:
        raise FileNotFoundError(
            f"{folder} has no checkpoint: give a .ckpt file, the folder that holds some, or the run's folder."
        )
    return _newest(paths, f"no checkpoint in {folder}")


def checkpoint_to_resume(path: str | Path) -> Path:
    """`path` itself; if it is damaged, the next older readable checkpoint beside it; if it is a folder, the newest in it.

    Raises:
        FileNotFoundError: `path` does not exist, or is a folder without checkpoints.
        ValueError: none is readable, or `path` is not damaged, but not a checkpoint of a fit.
    """
    path = as_path(path)
    if path.is_dir():
        return latest_checkpoint(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist: give a checkpoint, or the folder of a run.")
    found = defect(path)
    if not found:
        return path
    if found not in DAMAGES:
        raise ValueError(f"{path} {found}: give a checkpoint that a fit has written.")
    written = path.stat().st_mtime
    older = [
        other for other in sorted(path.parent.glob("*.ckpt")) if other != path and other.stat().st_mtime <= written
    ]
    return _newest([path, *older], f"neither {path} nor an older checkpoint beside it")


def defect(path: Path) -> str:
    """The reason why a fit cannot resume a checkpoint, as the end of a sentence; "" if it can."""
    try:
        step_of(path)
    except ValueError as error:
        return str(error)
    return ""


def _newest(paths: list[Path], subject: str) -> Path:
    """The readable checkpoint with the most steps. subject: of the error's sentence "... can be read"."""
    readable, defects = [], {}
    for path in paths:
        try:
            readable.append(ReadableCheckpoint(step_of(path), path.stat().st_mtime, path))
        except ValueError as error:
            defects[path] = str(error)
    if not readable:
        reasons = "; ".join(f"{path.name} {reason}" for path, reason in defects.items())
        raise ValueError(f"{subject} can be read ({reasons}): start the run again.")
    newest = max(readable)
    for path, reason in defects.items():
        warnings.warn(
            f"the checkpoint {path} {reason}: {newest.path.name}, of step {newest.step}, is used.", stacklevel=3
        )
    return newest.path


def step_of(path: Path) -> int:
    """The optimizer steps of a checkpoint, read from the instructions of its pickle without executing them.

    Raises:
        ValueError: the file is damaged, or not a checkpoint of a fit.
    """
    if path.stat().st_size == 0:
        raise ValueError("is empty")
    try:
        with path.open("rb") as file:
            content = check_archive(file)
        values = [value for code, value, _ in pickletools.genops(content) if code.name in NUMBER_AND_TEXT_OPCODES]
    except Exception as error:  # zipfile and pickletools raise many kinds
        raise ValueError("is damaged") from error
    if "global_step" not in values or "loops" not in values:
        raise ValueError("is not a checkpoint of Lightning")
    if "optimizer_states" not in values:
        raise ValueError("holds only weights")
    step: Any = (*values, None)[values.index("global_step") + 1]
    if not isinstance(step, int):
        raise ValueError("is not a checkpoint of Lightning")
    return step
