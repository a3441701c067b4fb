"""Compiles C source to a shared library, once per machine, and loads only what it compiled."""

from __future__ import annotations

import ctypes
import fcntl
import functools
import hashlib
import os
import platform
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from qat.files import cache_folder

FLAGS = ["-O3", "-march=native", "-fno-math-errno", "-fno-trapping-math", "-ffp-contract=off", "-fopenmp"]
"""None of them changes results: no reassociation, no reciprocals, no fused multiply-add."""
UNFINISHED = ".writing-"
"""Prefix of the temporary folders of compilations."""
TIMEOUT = 300
"""Seconds that a compilation may take."""


class BuildError(Exception):
    """The library cannot be built or loaded; the message says why in one sentence."""


class NoCompilerError(BuildError):
    """This machine has no compiler, or no OpenMP of torch, to build the library with."""


def shared_library(source: Path) -> Path:
    """The path of the compiled `source`: native/<hash>-<hash of its content>.so in the cache (`qat.files.cache_folder`).

    It is linked with torch's own OpenMP, whose threads it shares: a second OpenMP would compete with torch for the cores. A
    file whose content is not what was compiled is compiled again; what a killed compilation left behind is removed.

    Raises:
        NoCompilerError: no C compiler (CC, cc, gcc or clang), not Linux, or a torch without its own OpenMP.
        BuildError: the compiler failed.
    """
    compiler = next(
        (path for name in (os.environ.get("CC"), "cc", "gcc", "clang") if name and (path := shutil.which(name))), None
    )
    if compiler is None:
        raise NoCompilerError("there is no C compiler")
    openmp = sorted((Path(torch.__file__).parent / "lib").glob("libgomp*"))
    if platform.system() != "Linux" or not openmp:
        raise NoCompilerError("this torch has no libgomp of its own")
    folder, name = _library_folder(), _fingerprint(source, compiler)
    with _alone_in(folder):
        for library in sorted(folder.glob(f"{name}-*.so")):
            if _is_intact(library):
                return library
            library.unlink()
        return _compile([compiler, *FLAGS, "-shared", "-fPIC", str(source), str(openmp[0]), "-lm"], folder, name)


def load_checked(library: Path) -> ctypes.CDLL:
    """Load a library whose content has the hash in its name; it cannot be changed between the check and the loading.

    Raises:
        BuildError: it is not what was compiled, or cannot be loaded.
    """
    try:
        file = os.open(library, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        if not _is_intact(library, file):
            os.close(file)
            raise BuildError(f"{library} is not what was compiled: remove it")
        # The file stays open, because the linker takes two libraries of one name for the same.
        return ctypes.CDLL(f"/proc/self/fd/{file}")
    except OSError as error:
        raise BuildError(f"{library} cannot be loaded ({error})") from error


def _library_folder() -> Path:
    """A folder that only this user can write: in the cache, or else a temporary one."""
    folder = cache_folder() / "native"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = os.lstat(folder)
        if stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid():
            folder.chmod(0o700)
            if found.st_mode & 0o022:  # others could have written into it
                for path in folder.iterdir():
                    _remove(path)
            if os.access(folder, os.W_OK):
                return folder
    except OSError:
        pass
    return Path(_temporary_folder().name)


@functools.cache
def _temporary_folder() -> tempfile.TemporaryDirectory[str]:
    """A temporary folder, removed when the process ends."""
    return tempfile.TemporaryDirectory(prefix="qat-native-")


@contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    """Inside the `with` block, no other process compiles into `folder`, so unfinished work in it is that of killed ones."""
    with (folder / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
        except OSError:  # a file system without locks: files appear whole all the same
            yield
            return
        for path in folder.glob(f"{UNFINISHED}*"):
            _remove(path)
        yield


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _is_intact(library: Path, file: int | None = None) -> bool:
    """Whether a library is a file of this user alone, with the content that its name says.

    Args:
        library: its path.
        file: the same, open.
    """
    found = os.lstat(library) if file is None else os.fstat(file)
    if not stat.S_ISREG(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o022:
        return False
    content = library.read_bytes() if file is None else os.pread(file, found.st_size, 0)
    return library.stem.rpartition("-")[2] == _hash(content)


def _hash(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:32]


def _fingerprint(source: Path, compiler: str) -> str:
    """A hash of source, flags, compiler and processor features, because machines may share a home folder."""
    compiler_version = subprocess.run([compiler, "--version"], capture_output=True, check=False, timeout=TIMEOUT).stdout
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


def _compile(command: list[str], folder: Path, name: str) -> Path:
    """Compile into `folder`; the file appears there whole, or not at all."""
    with tempfile.TemporaryDirectory(prefix=UNFINISHED, dir=folder) as unfinished:
        made = Path(unfinished) / "made.so"
        environment = {**os.environ, "TMPDIR": unfinished}  # the compiler's own files go with it
        try:
            process = subprocess.run(
                [*command, "-o", str(made)],
                capture_output=True,
                text=True,
                errors="replace",
                check=False,
                env=environment,
                timeout=TIMEOUT,
            )
        except subprocess.TimeoutExpired as error:
            raise BuildError(f"{command[0]} was not ready after {TIMEOUT} seconds") from error
        if process.returncode:
            raise BuildError(f"{command[0]} failed: {' '.join(process.stderr.split())[:300]}")
        made.chmod(0o600)
        return made.replace(folder / f"{name}-{_hash(made.read_bytes())}.so")
