"""Where a run happened: enough to repeat it, without names of people or machines."""

import os
import platform
import subprocess
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Self

from qat.report.results.json_records import Record
from qat.version import DISTRIBUTION

PACKAGES = ("qat", "torch", "torchvision", "lightning", "onnx", "onnxruntime", "numpy", "hydra-core")


@dataclass(frozen=True)
class Environment(Record):
    """Software, processor and source state of one run.

    `commit` and `dirty` are None if the package does not run from its own git checkout. `dirty` counts untracked
    files too: a forgotten `git add` is the most common reason why a commit does not reproduce a result.
    """

    python: str
    platform: str
    cpu: str
    threads: int
    commit: str | None
    dirty: bool | None
    accelerator: str | None = None
    versions: dict[str, str] = field(default_factory=dict)
    vnni: bool | None = None

    @classmethod
    def collect(cls, threads: int | None = None, accelerator: str | None = None) -> Self:
        """Describe the environment of this process.

        Args:
            threads: the number the run computes with, as `torch.get_num_threads()`; None is the cores this process may
                use.
            accelerator: name of the device, as `torch.cuda.get_device_name()`; None if the run used the processor.

        >>> Environment.collect(threads=2).threads
        2
        """
        commit, dirty = source_state(Path(__file__).parent)
        return cls(
            python=platform.python_version(),
            platform=platform.platform(),
            cpu=cpu_name(),
            threads=threads if threads is not None else usable_cores(),
            commit=commit,
            dirty=dirty,
            accelerator=accelerator,
            versions=package_versions(),
            vnni=has_vnni(),
        )


def cpu_name(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """Name of the processor model from `/proc/cpuinfo`, else from `platform`."""
    try:
        lines = cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(filter(None, named), "") or platform.processor() or platform.machine() or "unknown"


def has_vnni(cpuinfo: Path = Path("/proc/cpuinfo")) -> bool | None:
    """Whether the processor has VNNI or AMX instructions; None without a list of its flags."""
    try:
        lines = cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return None
    flags = next((line.split() for line in lines if line.startswith("flags")), None)
    return None if flags is None else any("vnni" in flag or flag == "amx_int8" for flag in flags)


def usable_cores() -> int:
    """Number of cores this process may run on: its affinity where the system reports it, else all of them."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def package_versions() -> dict[str, str]:
    """Versions of the installed packages that influence the results; absent packages are left out."""
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(DISTRIBUTION if package == "qat" else package)
        except metadata.PackageNotFoundError:
            continue
    return versions


def source_state(folder: Path) -> tuple[str | None, bool | None]:
    """`(commit, dirty)` of the git checkout that tracks the package in `folder`, else `(None, None)`.

    Being inside a repository is not enough: a copy installed in the virtual environment of another project would report
    that project's commit. So the package's own `__init__.py` must be a tracked file.
    """
    if _git(folder, "ls-files", "--error-unmatch", "__init__.py") is None:
        return None, None
    commit = _git(folder, "rev-parse", "--verify", "HEAD")
    status = _git(folder, "status", "--porcelain")
    return (commit, bool(status)) if commit and status is not None else (None, None)


def _git(folder: Path, *arguments: str) -> str | None:
    """Output of a git command in `folder`; None if git is absent, fails or takes too long."""
    try:
        answer = subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=10, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return answer.stdout.strip()
