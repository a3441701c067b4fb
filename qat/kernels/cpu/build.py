"""From C source to a shared library, once for each machine."""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from pathlib import Path

import torch

from qat.files import atomic_path, cache_folder

FLAGS = ["-O3", "-march=native", "-fno-math-errno", "-fno-trapping-math", "-ffp-contract=off", "-fopenmp"]
"""None of them changes a result: no reassociation, no reciprocals, no fused multiply-add."""


class BuildError(Exception):
    """Why there is no library; the message is one sentence."""


def shared_library(source: Path) -> Path:
    """The compiled `source`, in the environment's QAT_CACHE_DIR (default ~/.cache/qat), in native/<hash>.so.

    It shares the threads of torch: a second OpenMP beside torch's would fight it for the cores.

    Raises:
        BuildError: no C compiler (CC, cc, gcc or clang), not Linux, a torch without its own OpenMP, or the compiler failed.
    """
    compiler = next(
        (path for name in (os.environ.get("CC"), "cc", "gcc", "clang") if name and (path := shutil.which(name))), None
    )
    if compiler is None:
        raise BuildError("there is no C compiler")
    openmp = sorted((Path(torch.__file__).parent / "lib").glob("libgomp*"))
    if platform.system() != "Linux" or not openmp:
        raise BuildError("torch brings no libgomp here")
    library = _folder() / f"{_fingerprint(source, compiler)}.so"
    if not library.is_file():
        _compile([compiler, *FLAGS, "-shared", "-fPIC", str(source), str(openmp[0]), "-lm"], library)
    return library


def _folder() -> Path:
    folder = cache_folder() / "native"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if os.access(folder, os.W_OK):
            return folder
    except OSError:
        pass
    return Path(tempfile.mkdtemp(prefix="qat-native-"))


def _fingerprint(source: Path, compiler: str) -> str:
    """Changes with source, flags, compiler, and with what the processor can do: homes are shared between machines."""
    described = subprocess.run([compiler, "--version"], capture_output=True, check=False).stdout
    processor = next(
        (line for line in _lines("/proc/cpuinfo") if line.startswith(("flags", "Features"))), platform.machine()
    )
    parts = (source.read_bytes(), " ".join(FLAGS).encode(), described, processor.encode())
    return hashlib.sha256(b"\0".join(parts)).hexdigest()[:24]


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text(errors="replace").splitlines()
    except OSError:
        return []


def _compile(command: list[str], library: Path) -> None:
    with atomic_path(library) as unfinished:
        done = subprocess.run([*command, "-o", str(unfinished)], capture_output=True, text=True, check=False)
        if done.returncode:
            raise BuildError(f"{command[0]} failed: {' '.join(done.stderr.split())[:300]}")
