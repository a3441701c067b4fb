"""Which checkpoint of a run to go on from: the newest that is whole."""

from __future__ import annotations

import pickletools
import warnings
import zipfile
from pathlib import Path
from typing import Any, NamedTuple

DAMAGES = ("is empty", "is damaged")
"""What a checkpoint can be when it was not written to its end, or changed afterwards."""
NUMBERS_AND_TEXTS = ("BININT", "BININT1", "BININT2", "LONG1", "INT", "BINUNICODE", "SHORT_BINUNICODE")
"""Instructions of a pickle that put such a value on its stack."""


class Found(NamedTuple):
    """A readable checkpoint: `step` counts optimizer steps, `written` is the file's time."""

    step: int
    written: float
    path: Path


def latest_checkpoint(folder: str | Path) -> Path:
    """The newest readable checkpoint (`*.ckpt`) of a run, by its step, in `folder` or in its subfolder `checkpoints`.

        trainer.fit(model, datamodule=data, ckpt_path=qat.latest_checkpoint("outputs/run"))

    What cannot be read is left out with a warning. The files' objects are not loaded, so nothing in them is executed.

    Raises:
        FileNotFoundError: there is no checkpoint. ValueError: none is readable; the message says why.
    """
    folder = Path(folder).expanduser()
    paths = [*sorted(folder.glob("*.ckpt")), *sorted((folder / "checkpoints").glob("*.ckpt"))]
    if not paths:
        raise FileNotFoundError(
            f"{folder} has no checkpoint: give a .ckpt file, the folder that holds some, or the run's folder."
        )
    return _newest(paths, f"no checkpoint in {folder}")


def checkpoint_to_resume(path: str | Path) -> Path:
    """`path` itself; the next older readable checkpoint beside it, if it is damaged; of a folder, the newest.

    Raises:
        FileNotFoundError: `path` does not exist, or is a folder without checkpoints. ValueError: none is readable, or `path` is
            whole, but no checkpoint of a fit.
    """
    path = Path(path).expanduser()
    if path.is_dir():
        return latest_checkpoint(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist: give a checkpoint, or the folder of a run.")
    why = defect(path)
    if why and why not in DAMAGES:
        raise ValueError(f"{path} {why}: give a checkpoint that a fit has written.")
    before = path.stat().st_mtime
    older = [other for other in sorted(path.parent.glob("*.ckpt")) if other != path and other.stat().st_mtime <= before]
    return _newest([path, *older], f"neither {path} nor an older checkpoint beside it") if why else path


def defect(path: Path) -> str:
    """Why a fit cannot go on from a checkpoint, as the end of a sentence; "" if it can."""
    try:
        _step(path)
    except ValueError as error:
        return str(error)
    return ""


def _newest(paths: list[Path], none: str) -> Path:
    found, defects = [], {}
    for path in paths:
        try:
            found.append(Found(_step(path), path.stat().st_mtime, path))
        except ValueError as error:
            defects[path] = str(error)
    if not found:
        reasons = "; ".join(f"{path.name} {why}" for path, why in defects.items())
        raise ValueError(f"{none} can be read ({reasons}): start the run again.")
    newest = max(found)
    for path, why in defects.items():
        warnings.warn(f"the checkpoint {path} {why}: {newest.path.name}, of step {newest.step}, is used.", stacklevel=3)
    return newest.path


def _step(path: Path) -> int:
    """Read from the pickle's instructions, without following them.

    Raises:
        ValueError: the file is damaged, or no checkpoint of a fit.
    """
    if path.stat().st_size == 0:
        raise ValueError("is empty")
    try:
        with zipfile.ZipFile(path) as archive:
            if archive.testzip() is not None:  # the checksum of every tensor
                raise zipfile.BadZipFile
            content = archive.read(next(name for name in archive.namelist() if name.endswith("/data.pkl")))
        values = [value for code, value, _ in pickletools.genops(content) if code.name in NUMBERS_AND_TEXTS]
    except (zipfile.BadZipFile, StopIteration, OSError, EOFError, NotImplementedError, ValueError) as error:
        raise ValueError("is damaged") from error
    if "global_step" not in values or "loops" not in values:
        raise ValueError("is no checkpoint of Lightning")
    if "optimizer_states" not in values:
        raise ValueError("holds weights alone")
    step: Any = values[values.index("global_step") + 1]
    return int(step)
