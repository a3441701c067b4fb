"""What the folder of a job says about it: finished, failed, pruned, or to be done."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from qat.experiment.folders import LOG, is_in_use, obstacle
from qat.experiment.recorded_configuration import read_configuration
from qat.files import write_atomically
from qat.report import Results, SchemaError, read_results

FAILURE, PRUNED, RESULTS = "failure.txt", "pruned.txt", "results.json"
EARLIER = "earlier_"
"""How the names of folders begin that hold what an earlier start of the job left."""
STAYS = (LOG, "trial.json")
"""Files of all starts of a job."""
WITHOUT_INFLUENCE = ("resume", "objective", "debug")
"""Keys of a configuration that change no number."""
Status = Literal["finished", "failed", "pruned", "under way", "other", "not finished"]


@dataclass(frozen=True)
class JobState:
    """Where a job stands. reason: of a failure, in one sentence; results: of a finished one."""

    status: Status
    reason: str = ""
    results: Results | None = None


def job_state(folder: Path, config: DictConfig | None = None, locked: bool = False) -> JobState:
    """Read the folder of a job.

    Args:
        folder: need not exist.
        config: what the job is to compute; a folder with the results of another configuration is "other". None: any.
        locked: whether this process has the folder.
    """
    if reason := obstacle(folder):
        return JobState("failed", reason)
    if (folder / FAILURE).is_file():
        return JobState("failed", (folder / FAILURE).read_text().strip())
    if (folder / RESULTS).is_file():
        return _with_results(folder, config)
    if (folder / PRUNED).is_file():
        return JobState("pruned", (folder / PRUNED).read_text().strip())
    if not locked and is_in_use(folder):
        return JobState("under way", "another process runs it.")
    return JobState("not finished", "it was not run to its end.")


def record_failure(folder: Path, reason: str) -> None:
    """Say in the job's folder why it failed."""
    write_atomically(folder / FAILURE, reason + "\n")


def record_pruning(folder: Path, reason: str) -> None:
    """Say in the job's folder why it was ended early."""
    write_atomically(folder / PRUNED, reason + "\n")


def set_aside(folder: Path) -> None:
    """Move what an earlier start of the job left into a folder of its own below, so that the job can start."""
    left = [path for path in folder.iterdir() if path.name not in STAYS and not path.name.startswith((EARLIER, "."))]
    if not left:
        return
    target = folder / f"{EARLIER}{len(_earlier(folder)) + 1}"
    target.mkdir()
    for path in sorted(left, key=lambda path: path.name != "config.yaml"):  # a checkpoint without it cannot be trusted
        path.rename(target / path.name)


def to_resume(folder: Path, config: DictConfig) -> Path | None:
    """The checkpoint from which the job goes on: the newest whole one of the same configuration; None if there is none."""
    from qat.training.checkpoint.latest import checkpoint_to_resume

    for earlier in reversed(_earlier(folder)):
        if not list(earlier.glob("checkpoints/*.ckpt")) or recorded(earlier) != written(config):
            continue
        try:
            return checkpoint_to_resume(earlier)
        except (ValueError, OSError):
            continue
    return None


def forget_earlier(folder: Path) -> None:
    """Delete what earlier starts left; the job is finished."""
    for earlier in _earlier(folder):
        shutil.rmtree(earlier, ignore_errors=True)


def task_part(config: DictConfig) -> DictConfig:
    """A composed configuration without Hydra's own part."""
    return OmegaConf.masked_copy(config, [str(key) for key in config if key != "hydra"])


def written(config: DictConfig) -> str | None:
    """A configuration as text, without the keys that change no number; None if it cannot be resolved here."""
    try:
        content: Any = OmegaConf.to_container(config, resolve=True)
    except OmegaConfBaseException:
        return None
    return OmegaConf.to_yaml({key: value for key, value in content.items() if key not in WITHOUT_INFLUENCE})


def recorded(folder: Path) -> str | None:
    """The configuration that a run left in its folder, as text; None if there is none."""
    try:
        return written(read_configuration(folder / "config.yaml"))
    except (OSError, ValueError):
        return None


def _with_results(folder: Path, config: DictConfig | None) -> JobState:
    wanted = None if config is None else written(config)
    if wanted is not None and (found := recorded(folder)) != wanted:
        return JobState("other", _difference(found, wanted))
    try:
        results = read_results(folder / RESULTS)
    except (OSError, SchemaError) as error:
        return JobState("failed", " ".join(str(error).split()))
    if any(v is not None and not v.exact for v in (results.verification, results.ptq_verification)):
        return JobState("failed", results.verdict.text)
    return JobState("finished", results=results)


def _difference(found: str | None, wanted: str) -> str:
    """The first line that differs, of two configurations as text."""
    lines = [set((text or "").splitlines()) for text in (found, wanted)]
    there, here = (next(iter(sorted(own - other)), "").strip() for own, other in (lines, lines[::-1]))
    return f"there {there or 'nothing'!r}, here {here or 'nothing'!r}"


def _earlier(folder: Path) -> list[Path]:
    numbers = {path: path.name.removeprefix(EARLIER) for path in folder.glob(f"{EARLIER}*")}
    return sorted((path for path, number in numbers.items() if number.isdecimal()), key=lambda path: int(numbers[path]))
