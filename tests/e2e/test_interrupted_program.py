"""The real program, ended by signals, by a full disk, and started twice."""

from __future__ import annotations

import re
import resource
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.test_front_door import environment
from tests.paths import ROOT

pytestmark = pytest.mark.slow

SHORT = ["recipe=digits_w8a8", "float.epochs=1", "float.max_steps=4", "calibration_images=64", "ptq=none"]


class Program:
    """`python train.py`, whose output is read line by line."""

    def __init__(self, where: Path, *overrides: str, **options: Any) -> None:
        command = [sys.executable, str(ROOT / "train.py"), *SHORT, *overrides]
        pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        self.process = subprocess.Popen(command, cwd=where, env=environment(where / "cache"), **pipes, **options)

    def end(self, number: signal.Signals, after: str, seconds: float = 0.0) -> tuple[int, str]:
        """Send a signal when a line has this text. The exit status, and what was said afterwards."""
        assert self.process.stdout is not None
        if not any(after in line for line in self.process.stdout):
            pytest.fail(f"the program never said {after!r}")
        time.sleep(seconds)
        self.process.send_signal(number)
        return self.wait()

    def wait(self) -> tuple[int, str]:
        said, _ = self.process.communicate(timeout=300)
        return self.process.returncode, said


def go_on(said: str, where: Path) -> subprocess.CompletedProcess[str]:
    """Run the command in the last line."""
    command = shlex.split(said.strip().splitlines()[-1])
    return subprocess.run(
        command, cwd=where, env=environment(where / "cache"), capture_output=True, text=True, timeout=300
    )


def test_a_signal_in_training_leaves_a_checkpoint_and_the_command(tmp_path: Path) -> None:
    run = Program(tmp_path, "trainer.max_steps=300", "trainer.max_epochs=40", "validations=50", "export=none")
    status, said = run.end(signal.SIGTERM, "QAT, step")
    assert status == 143, said
    assert re.search(r"interrupted by SIGTERM, during QAT\. .*/interrupted\.ckpt, of step \d+, is kept", said)
    done = go_on(said, tmp_path)
    assert done.returncode == 0, done.stderr
    assert "QAT, step 300 of 300" in done.stdout


def test_a_signal_before_the_first_checkpoint_says_what_begins_anew(tmp_path: Path) -> None:
    run = Program(tmp_path, "float.epochs=400", "float.max_steps=2000", "trainer.max_steps=2", "export=none")
    status, said = run.end(signal.SIGINT, "training the float network first", 1.0)
    assert status == 130, said
    assert "during the float training. There is no checkpoint yet" in said
    assert "Traceback" not in said
    command = said.strip().splitlines()[-1].replace("float.max_steps=2000", "float.max_steps=2")
    folder = next(path for path in tmp_path.rglob("config.yaml"))
    folder.write_text(folder.read_text().replace("max_steps: 2000", "max_steps: 2"))
    done = go_on(command, tmp_path)
    assert done.returncode == 0, done.stderr
    assert "interrupted before its first checkpoint, so it starts anew" in done.stdout


def test_a_signal_in_the_export_goes_on_with_the_export(tmp_path: Path) -> None:
    status, said = Program(tmp_path, "trainer.max_steps=4").end(signal.SIGTERM, "QAT, step 4 of 4", 0.3)
    assert status == 143, said
    assert not list(tmp_path.rglob("model.onnx"))
    assert go_on(said, tmp_path).returncode == 0
    assert list(tmp_path.rglob("model.onnx"))


def test_runs_that_start_together_have_folders_of_their_own(tmp_path: Path) -> None:
    short = ("trainer.max_steps=2", "export=none")
    named = [Program(tmp_path, *short, "hydra.run.dir=both") for _ in range(2)]
    free = [Program(tmp_path, *short) for _ in range(2)]
    ended = [program.wait() for program in named]
    assert sorted(status for status, _ in ended) == [0, 2]
    assert "hydra.run.dir=" in next(said for status, said in ended if status == 2)
    assert [program.wait()[0] for program in free] == [0, 0]
    assert len(list((tmp_path / "outputs" / "digits_w8a8").iterdir())) == 2


def test_a_full_disk_names_the_file(tmp_path: Path) -> None:
    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000))

    status, said = Program(tmp_path, "trainer.max_steps=2", "export=none", "hydra.run.dir=run", preexec_fn=limit).wait()
    assert status == 1
    assert re.match(r"error: .*\.ckpt: File too large$", said.strip().splitlines()[-1]), said
    assert "Traceback" not in said
    assert not [path for path in (tmp_path / "run").rglob("*") if path.suffix == ".ckpt" or ".writing-" in path.name]
