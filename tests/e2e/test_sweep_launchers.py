"""Searches and launchers of sweeps as far as one machine goes: jobs in several processes, and several programs on one study."""

from __future__ import annotations

import csv
import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e.test_front_door import environment
from tests.paths import ROOT

pytestmark = pytest.mark.slow

TINY = [
    *("recipe=digits_w8a8", "float.epochs=1", "float.max_steps=4", "trainer.max_epochs=2", "calibration_images=64"),
    *("ptq=none", "export=none", "data.limit_train=400", "data.limit_test=100", "hydra.sweep.dir=sweep"),
]
LAUNCHERS = {
    "joblib": ("hydra_joblib_launcher", "hydra.launcher.n_jobs=2"),
    "submitit_local": ("hydra_submitit_launcher", "hydra.launcher.timeout_min=10"),
    "ray": ("hydra_ray_launcher", "+hydra.launcher.ray.init.num_cpus=2"),
}


def start(where: Path, *arguments: str) -> subprocess.Popen[str]:
    settings = environment(where / "cache") | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(ROOT / "train.py"), "-m", *arguments, *TINY]
    return subprocess.Popen(command, cwd=where, env=settings, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def ended(running: subprocess.Popen[str]) -> str:
    said, complained = running.communicate(timeout=580)
    assert running.returncode == 0, said[-3000:] + complained
    return said


def rows(where: Path) -> list[dict[str, str]]:
    with (where / "sweep" / "sweep.csv").open() as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_jobs_run_in_processes_of_their_own(launcher: str, tmp_path: Path) -> None:
    package, option = LAUNCHERS[launcher]
    if importlib.util.find_spec(f"hydra_plugins.{package}") is None:
        pytest.skip(f"{package} is not installed")
    ended(start(tmp_path, f"sweep={launcher}", option, "policy=w8a8,w4a8"))
    assert [(row["policy"], row["status"]) for row in rows(tmp_path)] == [("w8a8", "finished"), ("w4a8", "finished")]
    again = ended(start(tmp_path, f"sweep={launcher}", option, "policy=w8a8,w4a8"))
    assert "[####" not in again
    logs = [(tmp_path / "sweep" / f"policy={policy}" / "train.log").read_text() for policy in ("w8a8", "w4a8")]
    assert all(log.count("is finished: skipped") == 1 for log in logs)


def test_two_programs_share_a_search_and_hopeless_trials_are_pruned(tmp_path: Path) -> None:
    pytest.importorskip("optuna", reason="the extra optuna is not installed")
    search = [
        *("sweep=optuna", "optim.lr=tag(log,interval(0.0000001,0.1))", "hydra.sweeper.n_trials=6"),
        "hydra.sweeper.pruner.n_startup_trials=1",
    ]
    both = [start(tmp_path, *search) for _ in range(2)]
    for running in both:
        ended(running)
    ended(start(tmp_path, *search))  # the one that ended first did not know how the last trial ends
    found = rows(tmp_path)
    assert len(found) == 6
    assert {row["status"] for row in found} == {"finished", "pruned"}
    pruned = [row for row in found if row["status"] == "pruned"]
    assert all("is hopeless (MedianPruner)" in row["reason"] for row in pruned)
