"""Compiles C source to a shared library, once per machine."""

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
"""None of them changes results: no reassociation, no reciprocals, no fused multiply-add."""


class BuildError(Exception):
    """The library cannot be built; the message says why in one sentence."""


def shared_library(source: Path) -> Path:
    """The path of the compiled `source`: native/<hash>.so in the cache folder (`qat.files.cache_folder`).

    It is linked with torch's own OpenMP, whose threads it shares: a second OpenMP would compete with torch for the cores.

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
        raise BuildError("this torch has no libgomp of its own")
    library = _library_folder() / f"{_fingerprint(source, compiler)}.so"
    if not library.is_file():
        _compile([compiler, *FLAGS, "-shared", "-fPIC", str(source), str(openmp[0]), "-lm"], library)
    return library


def _library_folder() -> Path:
    """A writable folder: in the cache, or else a temporary one."""
    folder = cache_folder() / "native"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if os.access(folder, os.W_OK):
            return folder
    except OSError:
        pass
    return Path(tempfile.mkdtemp(prefix="qat-native-"))


def _fingerprint(source: Path, compiler: str) -> str:
    """A hash of source, flags, compiler and processor features, because machines may share a home folder."""
    compiler_version = subprocess.run([compiler, "--version"], capture_output=True, check=False).stdout
    processor = next(
        (line for line in _lines("/proc/cpuinfo") if line.startswith(("flags", "Features"))), platform.machine()
    )
    parts = (source.read_bytes(), " ".join(FLAGS).encode(), compiler_version, processor.encode())
    return hashlib.sha256(b"\0".join(parts)).hexdigest()[:24]


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text(errors="replace").splitlines()
    except OSError:
        return []


def _compile(command: list[str], library: Path) -> None:
    with atomic_path(library) as unfinished:
        process = subprocess.run([*command, "-o", str(unfinished)], capture_output=True, text=True, check=False)
        if process.returncode:
            raise BuildError(f"{command[0]} failed: {' '.join(process.stderr.split())[:300]}")
