"""The cache of compiled kernels: only what this user compiled is loaded, and whatever fails leaves torch's own operations."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from qat.kernels.cpu import build, library, load_kernels
from tests.paths import ROOT

pytestmark = pytest.mark.skipif(load_kernels() is None, reason="there is no C compiler, or QAT_NATIVE=0")

EVIL = """
#include <stdio.h>
__attribute__((constructor)) static void planted(void) { fclose(fopen("%s", "w")); }
"""


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("QAT_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(library, "_warned", [])
    path = tmp_path / "one.c"
    path.write_text("int one(void) { return 1; }")
    return path


def planted(tmp_path: Path) -> tuple[bytes, Path]:
    """A library that leaves a mark when it is loaded, and the mark."""
    code, mark = tmp_path / "evil.c", tmp_path / "mark"
    code.write_text(EVIL % mark)
    subprocess.run(["cc", "-shared", "-fPIC", str(code), "-o", str(tmp_path / "evil.so")], check=True)
    return (tmp_path / "evil.so").read_bytes(), mark


def test_a_library_is_private_and_loaded(source: Path) -> None:
    path = build.shared_library(source)
    assert path.parent.stat().st_mode & 0o777 == 0o700
    assert path.stat().st_mode & 0o777 == 0o600
    assert build.load_checked(path).one() == 1


@pytest.mark.parametrize("damage", ["truncated", "empty", "flipped", "planted", "writable", "link"])
def test_what_was_not_compiled_is_never_loaded_and_compiled_again(damage: str, source: Path, tmp_path: Path) -> None:
    path = build.shared_library(source)
    content = path.read_bytes()
    evil, mark = planted(tmp_path)
    changed = {
        "truncated": content[:-4000],
        "empty": b"",
        "flipped": content[:3000] + bytes([content[3000] ^ 1]) + content[3001:],
    }.get(damage, evil)
    path.unlink()
    if damage == "link":
        (tmp_path / "elsewhere.so").write_bytes(content)
        path.symlink_to(tmp_path / "elsewhere.so")
    else:
        path.write_bytes(content if damage == "writable" else changed)
        path.chmod(0o666 if damage == "writable" else 0o600)
    with pytest.raises(build.BuildError, match=str(path)):
        build.load_checked(path)
    assert build.load_checked(build.shared_library(source)).one() == 1
    assert not mark.exists()


def test_a_folder_that_others_can_write_is_emptied_and_closed(source: Path, tmp_path: Path) -> None:
    path = build.shared_library(source)
    evil, mark = planted(tmp_path)
    name = path.stem.rpartition("-")[0]
    path.with_name(f"{name}-{build._hash(evil)}.so").write_bytes(evil)  # whoever can write can also name
    path.parent.chmod(0o777)
    assert build.load_checked(build.shared_library(source)).one() == 1
    assert path.parent.stat().st_mode & 0o777 == 0o700
    assert not mark.exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder away")
def test_a_folder_of_somebody_else_is_not_used(source: Path, tmp_path: Path) -> None:
    folder = tmp_path / "cache" / "native"
    folder.mkdir(parents=True)
    os.chown(folder, 12345, 12345)
    path = build.shared_library(source)
    assert folder not in path.parents
    assert not list(folder.iterdir())
    assert build.load_checked(path).one() == 1


def test_a_failure_is_one_warning_and_torch_computes(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(path: Path) -> Path:
        raise build.BuildError("cc failed: no space left")

    monkeypatch.setattr(library, "shared_library", fails)
    load = library.load_library.__wrapped__
    with pytest.warns(UserWarning, match=r"not used, torch's own .*: cc failed: no space left"):
        assert load("fake_quantize.c") is None
    assert load("ranges.c") is None  # a second warning would be an error


def test_a_library_without_the_functions_is_a_warning(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library, "load_library", lambda name: build.load_checked(build.shared_library(source)))
    with pytest.warns(UserWarning, match=r"fake_quantize\.c lacks a function"):
        assert library.bind("fake_quantize.c", library.Kernels) is None


@pytest.mark.slow
def test_a_killed_compilation_leaves_nothing(source: Path, tmp_path: Path) -> None:
    slow = tmp_path / "slow_cc"
    slow.write_text(
        f'#!/bin/sh\n[ "$1" = --version ] || {{ touch "$TMPDIR/temporary"; sleep 30; }}\nexec {shutil.which("cc")} "$@"'
    )
    slow.chmod(0o755)
    code = f"from pathlib import Path\nfrom qat.kernels.cpu import build\nbuild.shared_library(Path({str(source)!r}))"
    environment = {**os.environ, "CC": str(slow), "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen([sys.executable, "-c", code], env=environment, start_new_session=True)
    folder = tmp_path / "cache" / "native"
    try:
        deadline = time.monotonic() + 60
        while not list(folder.glob(f"{build.UNFINISHED}*/temporary")) and time.monotonic() < deadline:
            time.sleep(0.05)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    assert list(folder.glob(f"{build.UNFINISHED}*"))
    path = build.shared_library(source)
    assert sorted(p.name for p in folder.iterdir()) == sorted([path.name, "lock"])
