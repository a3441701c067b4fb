"""The folder of a run: a new one for every run, and never two runs in one."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from omegaconf import OmegaConf

from qat.experiment.recorded_configuration import read_configuration
from qat.experiment.worker_processes import is_worker

CONTENT = ("results.json", "metrics", "checkpoints")
"""What tells that a folder holds a run that has begun to train."""

LOG = "train.log"
"""What Hydra opens in the folder before the run begins."""


def register_new_folder() -> None:
    """Let configurations write `${new_folder:PATH}`: a folder that did not exist, PATH or PATH_2, PATH_3, ..."""
    OmegaConf.register_new_resolver("new_folder", new_folder, replace=True, use_cache=True)


def new_folder(path: str) -> str:
    """Make a folder that did not exist: `path`, or the first of path_2, path_3, ... that is free. Atomic.

    Returns:
        Its name; `path` if no folder can be made, so that whoever uses it says why.
    """
    number = 1
    while True:
        name = path if number == 1 else f"{path}_{number}"
        try:
            Path(name).parent.mkdir(parents=True, exist_ok=True)
            Path(name).mkdir()
        except FileExistsError:
            number += 1
        except OSError:
            return path
        else:
            return name


class FolderInUse(ValueError):
    """Another run has the folder."""


@contextmanager
def folder_of_one_run(folder: Path) -> Iterator[None]:
    """Inside the `with` block no other process that asks gets `folder`. The lock ends with the process, however it ends.

    Raises:
        FolderInUse: another run has it.
        OSError: a file cannot be written; an error that names no file gets the name of the folder.
    """
    if is_worker():
        yield
        return
    folder.mkdir(parents=True, exist_ok=True)
    handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise FolderInUse(
                f"hydra.run.dir={folder} is the folder of a run that is under way: write the name of another folder, or leave "
                "hydra.run.dir out."
            ) from None
        except OSError:
            pass  # a file system without locks
        yield
    except OSError as error:
        if error.errno is None or error.filename is not None:
            raise
        raise OSError(error.errno, error.strerror, str(folder)) from error  # of a full disk, in a library's file
    finally:
        os.close(handle)


def is_in_use(folder: Path) -> bool:
    """Whether a run is under way in a folder, as far as the file system tells."""
    if not folder.is_dir():
        return False
    try:
        with folder_of_one_run(folder):
            return False
    except FolderInUse:
        return True


def obstacle(folder: Path) -> str | None:
    """Why no job of a sweep can write into a folder, which need not exist, in one sentence; None if nothing is in its way."""
    place = next(path for path in (folder, *folder.absolute().parents) if os.path.lexists(path))
    log = folder / LOG
    if not place.is_dir():
        return f"{place} is no folder: move it away, or write hydra.sweep.dir=FOLDER with a new one."
    if log.is_dir():
        return f"{log} is a folder, where a file belongs: move it away."
    blocked = next((path for path in (place, log) if path.exists() and not os.access(path, os.W_OK)), None)
    return None if blocked is None else f"{blocked} cannot be written: change its permissions."


def check_folder(folder: Path) -> None:
    """Check that the run overwrites no other run.

    Raises:
        ValueError: the folder holds results, metrics or checkpoints.
    """
    existing = [name for name in CONTENT if (folder / name).exists()]
    if existing:
        raise ValueError(
            f"hydra.run.dir={folder} holds {' and '.join(existing)} of another run, which would be overwritten: write the name "
            "of a new folder, also where resume= continues that run, or leave hydra.run.dir out."
        )


def was_interrupted_early(path: Path) -> bool:
    """Whether this is the folder of a run that wrote no checkpoint."""
    begun = path.is_dir() and any((path / name).exists() for name in ("config.yaml", LOG))
    return (
        begun and not [*path.glob("*.ckpt"), *path.glob("checkpoints/*.ckpt")] and not (path / "results.json").exists()
    )


def resumed_by(folder: Path) -> Path | None:
    """What the run in this folder resumed; None if nothing, if it is gone, or if that was this folder."""
    config = folder / "config.yaml"
    found = OmegaConf.select(read_configuration(config), "resume") if config.is_file() else None
    path = None if found is None else Path(str(found)).expanduser()
    return path if path is not None and path.exists() and path.resolve() != folder.resolve() else None


def run_folder_of(checkpoint: Path) -> Path:
    """The folder of the run that wrote a checkpoint."""
    return checkpoint.parent.parent if checkpoint.parent.name == "checkpoints" else checkpoint.parent


def shortened(folder: Path) -> Path:
    """The folder as one would type it here."""
    return folder.relative_to(Path.cwd()) if folder.is_relative_to(Path.cwd()) else folder
