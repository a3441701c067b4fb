"""`python train.py -m ...`: three policies and three seeds, one job that fails, a kill and a second start."""

from __future__ import annotations

import csv
import json
import shlex
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path

import pytest

from qat.report import timing_free
from tests.e2e.test_front_door import environment
from tests.paths import ROOT

pytestmark = pytest.mark.slow

TINY = [
    *("recipe=digits_w8a8", "float.epochs=4", "trainer.max_epochs=3", "calibration_images=64", "ptq=quick"),
    *("data.limit_train=600", "data.limit_test=100", "callbacks.recent.train_time_interval.seconds=0"),
]
SWEEP = [
    *("-m", "policy=w8a8,w4a8,w4a4", "seed=0,1,2", "hydra.sweep.dir=sweep"),
    *("+callbacks.fail={_target_: failing.Failing, seed: '${seed}', preset: '${policy.preset}'}", *TINY),
]
FAILING = """
import lightning as L

class Failing(L.Callback):
    def __init__(self, seed, preset):
        self.fails = (seed, preset) == (1, "w4a8")

    def on_train_start(self, trainer, pl_module):
        if self.fails:
            raise RuntimeError("this job\\nfails")
"""


def command(*arguments: str) -> list[str]:
    return [sys.executable, str(ROOT / "train.py"), *arguments]


def start(where: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    settings = environment(where / "cache") | {"PYTHONPATH": f"{where}:{ROOT}"}
    return subprocess.run(command(*arguments), cwd=where, env=settings, capture_output=True, text=True, timeout=1200)


def kill_in(job: Path, where: Path) -> None:
    """Start the sweep, and kill it once a job has a checkpoint of its second epoch."""
    settings = environment(where / "cache") | {"PYTHONPATH": f"{where}:{ROOT}"}
    with (where / "first.log").open("w") as log:
        running = subprocess.Popen(command(*SWEEP), cwd=where, env=settings, stdout=log, stderr=log)
    deadline = time.monotonic() + 600
    try:
        while not list(job.glob("checkpoints/step_7.ckpt")):
            assert running.poll() is None, (where / "first.log").read_text()
            assert time.monotonic() < deadline
            time.sleep(0.001)
    finally:
        running.send_signal(signal.SIGKILL)
        running.wait()


@pytest.fixture(scope="module")
def where(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sweep")
    (folder / "failing.py").write_text(FAILING)
    return folder


@pytest.fixture(scope="module")
def second(where: Path) -> subprocess.CompletedProcess[str]:
    kill_in(where / "sweep" / "policy=w4a8,seed=2", where)
    return start(where, *SWEEP)


def jobs(where: Path) -> list[dict[str, str]]:
    with (where / "sweep" / "sweep.csv").open() as file:
        return list(csv.DictReader(file))


def test_a_sweep_that_was_killed_goes_on_and_ends_in_one_table(
    where: Path, second: subprocess.CompletedProcess[str]
) -> None:
    assert second.returncode == 1, second.stderr
    last = "error: 1 of 9 jobs has no results: policy=w4a8,seed=1: this job fails."
    assert second.stderr.strip().splitlines()[-1] == last
    assert second.stdout.count("is finished: skipped") == 4
    assert "policy=w4a8,seed=2 goes on from sweep/policy=w4a8,seed=2/earlier_1/checkpoints/step_" in second.stdout
    rows = jobs(where)
    assert [(row["policy"], row["seed"]) for row in rows] == [(p, s) for p in ("w8a8", "w4a8", "w4a4") for s in "012"]
    failed = [row for row in rows if row["status"] == "failed"]
    assert [(row["job"], row["reason"], row["test"]) for row in failed] == [
        ("policy=w4a8,seed=1", "this job fails", "")
    ]
    assert {row["status"] for row in rows} == {"finished", "failed"}
    for row in rows:
        if row["status"] == "finished":
            results = json.loads((where / "sweep" / row["job"] / "results.json").read_text())
            deployed = next(r for r in results["rows"] if r["kind"] == "qat_onnxruntime")
            assert float(row["test"]) == pytest.approx(deployed["top1"])
            assert float(row["size_bytes"]) == deployed["size_bytes"]
    table = (where / "sweep" / "sweep.md").read_text()
    values = [100 * float(row["test"]) for row in rows if row["policy"] == "w4a4"]
    assert "| w4a4 | 3 of 3 |" in table
    assert f"| {statistics.mean(values):.2f} ± {statistics.stdev(values):.2f} |" in table
    assert "| w4a8 | 2 of 3 |" in table
    assert "| `policy=w4a8,seed=1` | failed | this job fails |" in table
    assert (
        not list((where / "sweep").glob("*/earlier_*/checkpoints/*")) or (where / "sweep/policy=w4a8,seed=1").exists()
    )


def test_each_job_is_what_its_own_command_computes(where: Path, second: subprocess.CompletedProcess[str]) -> None:
    """The killed and resumed one, too."""
    job = json.loads((where / "sweep" / "policy=w4a8,seed=2" / "results.json").read_text())
    words = job["command"].removeprefix("python train.py ")
    assert " -m " not in words
    done = start(where, *shlex.split(words), "hydra.run.dir=alone")
    assert done.returncode == 0, done.stderr
    alone = json.loads((where / "alone" / "results.json").read_text())
    resume = job["config"].pop("resume")
    assert "earlier_1" in resume
    alone["config"].pop("resume")
    for results in (job, alone):
        results.pop("command")
    assert timing_free(job) == timing_free(alone)


def test_the_best_configuration_is_a_recipe_that_runs(where: Path, second: subprocess.CompletedProcess[str]) -> None:
    text = (where / "sweep" / "recipe" / "best.yaml").read_text()
    assert "override /policy: " in text
    best = start(where, "--config-dir=sweep", "recipe=best", "hydra.run.dir=best")
    assert best.returncode == 0, best.stderr
    again = json.loads((where / "best" / "results.json").read_text())
    policy = again["config"]["policy"]["preset"]
    job = json.loads((where / "sweep" / f"policy={policy},seed=0" / "results.json").read_text())
    assert again["rows"][-1]["top1"] == job["rows"][-1]["top1"]
    assert {k: v for k, v in again["config"].items() if k != "resume"} == {
        k: v for k, v in job["config"].items() if k != "resume"
    }


def test_another_configuration_in_the_same_folder_is_refused(
    where: Path, second: subprocess.CompletedProcess[str]
) -> None:
    done = start(where, *SWEEP, "trainer.max_epochs=4")
    assert done.returncode == 2
    assert "holds the results of another configuration (there 'max_epochs: 3', here 'max_epochs: 4')" in done.stderr
