"""Damaged and foreign files: an error of one sentence, no crash, nothing executed, little memory, no other weights."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.paths import ROOT


@pytest.mark.parametrize("count", [pytest.param(12, id="some"), pytest.param(400, id="many", marks=pytest.mark.slow)])
def test_bad_files_are_sentences_and_harm_nothing(count: int, tmp_path: Path) -> None:
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "QAT_CACHE_DIR": str(tmp_path / "cache"),
        "OMP_NUM_THREADS": "1",
    }
    done = subprocess.run(
        [sys.executable, "-m", "tests.reading.fuzzed_files", str(count), str(tmp_path / "files")],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=1800,
    )
    faults = [line for line in done.stdout.splitlines() if line.startswith("FAULT")]
    assert not faults, "\n".join(faults)
    assert done.returncode == 0, done.stderr[-2000:]
    assert int(done.stdout.split("peak ")[1]) < 2 << 30
    assert done.stderr.count("reading ") == count
