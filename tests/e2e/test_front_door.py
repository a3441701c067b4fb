"""`python train.py` as people start it: another process, another folder, real data, a tiny budget."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import onnx
import pytest
import torch
import yaml
from torch.utils._pytree import tree_leaves

import qat
from qat.report import read_results, timing_free
from tests.paths import ROOT

TINY = ["float.epochs=2", "trainer.max_epochs=2", "calibration_images=128", "ptq=quick"]


class Run(NamedTuple):
    folder: Path
    said: str
    complained: str

    @property
    def results(self) -> dict[str, Any]:
        content: dict[str, Any] = json.loads((self.folder / "results.json").read_text())
        return content


def environment(cache: Path) -> dict[str, str]:
    return {**os.environ, "QAT_CACHE_DIR": str(cache), "OMP_NUM_THREADS": "1", "COLUMNS": "120"}


def train(where: Path, cache: Path, *overrides: str) -> Run:
    where.mkdir(parents=True)
    command = [sys.executable, str(ROOT / "train.py"), "hydra.run.dir=run", *overrides]
    done = subprocess.run(command, cwd=where, env=environment(cache), capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    return Run(where / "run", done.stdout, done.stderr)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def first(cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return train(tmp_path_factory.mktemp("first") / "here", cache, *TINY)


def test_the_runs_checkpoint_alone_gives_the_network_that_was_exported(first: Run) -> None:
    network = qat.load_checkpoint(first.folder / "checkpoints" / "best.ckpt")
    batches = [torch.randn(16, 1, 8, 8, generator=torch.Generator().manual_seed(0))]
    assert qat.verify(first.folder / "model.onnx", qat.convert(network), batches).exact


def test_everything_lands_in_the_runs_folder(first: Run) -> None:
    assert [path.name for path in first.folder.parent.iterdir()] == ["run"]
    names = {str(path.relative_to(first.folder)) for path in first.folder.rglob("*") if path.is_file()}
    recommended = first.results["verdict"]["outcome"] in ("no_difference", "qat_lost")
    assert ("model_ptq.onnx" in names) == recommended
    assert names - {"model_ptq.onnx"} == {
        "config.yaml",
        "checkpoints/best.ckpt",
        "checkpoints/last.ckpt",
        "model.onnx",
        "float.onnx",
        "results.json",
        "report.html",
        "report.md",
        "accuracy.png",
        "latency.png",
        "size.png",
        "training.png",
        *(f"metrics/{name}.csv" for name in ("metrics", "comparison", "sites", "summary", "tensors", "verification")),
        "metrics/hparams.yaml",
        "train.log",
    }


def test_nothing_is_complained_of_and_the_verdict_comes_last(first: Run) -> None:
    assert first.complained == ""
    verdict = first.results["verdict"]["text"]
    assert " ".join(first.said.split()).endswith(" ".join(verdict.split()))
    assert "warning" not in first.said


def test_the_results_are_consistent(first: Run) -> None:
    results = read_results(first.folder / "results.json")
    rows = {row.name: row for row in results.rows}
    assert list(rows) == [
        "float", "PTQ min-max", "PTQ MSE", "QAT step 0", "QAT fake-quant", "QAT integer", "QAT in ONNX Runtime",
    ]  # fmt: skip
    assert rows["float"].top1 > 0.8
    assert rows["QAT step 0"].top1 == rows["PTQ MSE"].top1
    assert rows["QAT step 0"].note == "predicts the same class as PTQ MSE for every test sample"
    assert rows["QAT integer"].top1 == rows["QAT in ONNX Runtime"].top1
    assert all(row.top5 is not None and row.calibration_error is not None for row in rows.values())
    assert rows["float"].size_bytes == (first.folder / "float.onnx").stat().st_size
    assert rows["QAT in ONNX Runtime"].size_bytes == (first.folder / "model.onnx").stat().st_size
    assert results.verification is not None
    assert results.verification.exact
    assert results.verification.images == results.data.test == 500
    assert results.verification.quantized_operators["QLinearConv"] == 7
    assert results.training is not None
    assert (results.training.epochs, results.training.steps) == (2, 18)
    assert (results.recipe, results.seed) == ("digits_w2a2", 0)
    assert results.command == "python train.py hydra.run.dir=run " + " ".join(TINY)
    assert results.config == yaml.safe_load((first.folder / "config.yaml").read_text())
    assert {"data", "float", "calibration", "ptq", "qat", "export", "verification"} <= results.timings.keys()
    onnx.checker.check_model(onnx.load(first.folder / "model.onnx"))


def same(a: Run, b: Run) -> bool:
    files = [(run.folder / "model.onnx").read_bytes() for run in (a, b)]
    return timing_free(a.results) == timing_free(b.results) and files[0] == files[1]


@pytest.mark.slow
def test_the_same_seed_gives_the_same_results_from_the_kept_float_network(
    first: Run, cache: Path, tmp_path: Path
) -> None:
    kept = train(tmp_path / "kept", cache, *TINY)
    assert "training the float network first" in first.said
    assert "float network: trained before, cached in" in kept.said
    assert same(kept, first)


@pytest.mark.slow
def test_the_same_seed_gives_the_same_results_when_the_float_network_is_trained_again(
    first: Run, tmp_path: Path
) -> None:
    assert same(train(tmp_path / "again", tmp_path / "another_cache", *TINY), first)


@pytest.mark.slow
def test_another_seed_gives_other_results(first: Run, cache: Path, tmp_path: Path) -> None:
    other = train(tmp_path / "other", cache, *TINY, "seed=1", "export=none", "logger=tensorboard")
    assert other.results["training"]["train_loss"] != first.results["training"]["train_loss"]
    assert other.results["verification"] is None
    assert other.results["rows"][-1]["name"] == "QAT integer"
    assert not (other.folder / "model.onnx").exists()
    assert list((other.folder / "tensorboard").glob("events*"))


@pytest.mark.slow
def test_an_interrupted_run_goes_on_from_its_checkpoint(first: Run, cache: Path, tmp_path: Path) -> None:
    last = first.folder / "checkpoints" / "last.ckpt"
    longer = [*TINY[:1], "trainer.max_epochs=3", *TINY[2:], f"resume={last}", "optim.schedule=null"]
    resumed = train(tmp_path / "resumed", cache, *longer)
    assert resumed.results["training"]["steps"] == 27
    assert resumed.results["rows"][:4][3]["note"].startswith("predicts the same class as PTQ MSE")


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["bf16-true", "64-true", "bf16-mixed"])
def test_a_run_in_another_precision_ends_with_a_verified_file(precision: str, tmp_path: Path) -> None:
    run = train(tmp_path / "run", tmp_path, *TINY, f"trainer.precision={precision}")
    assert run.results["verification"]["code_mismatches"] == 0
    assert {row["kind"] for row in run.results["rows"]} >= {"float", "ptq", "qat_onnxruntime"}


def kill_at(step: int, where: Path, cache: Path, *overrides: str) -> Path:
    """SIGKILL to a run once the checkpoint of a step is there. Returns the run's folder."""
    where.mkdir()
    command = [sys.executable, str(ROOT / "train.py"), "hydra.run.dir=run", *overrides]
    running = subprocess.Popen(command, cwd=where, env=environment(cache), stdout=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 300
        while not (where / "run" / "checkpoints" / f"step_{step}.ckpt").exists():
            assert running.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.001)
    finally:
        running.send_signal(signal.SIGKILL)
        running.wait()
    return where / "run"


@pytest.mark.slow  # tests/training/checkpoint resumes in one process
def test_a_killed_run_leaves_no_results_and_ends_as_if_it_had_not_been_killed(
    first: Run, cache: Path, tmp_path: Path
) -> None:
    step = random.SystemRandom().randint(1, 17)
    often = [*TINY, "callbacks.recent.train_time_interval.seconds=0"]
    killed = kill_at(step, tmp_path / "killed", cache, *often)
    names = {path.name for path in killed.iterdir()}
    assert not names & {"results.json", "report.md", "model.onnx", "float.onnx"}
    assert "config.yaml" in names
    resumed = train(tmp_path / "resumed", cache, *often, f"resume={killed}")
    assert without_command(resumed) == without_command(first), f"killed at step {step}"
    assert (resumed.folder / "model.onnx").read_bytes() == (first.folder / "model.onnx").read_bytes()
    best, same = (torch.load(run.folder / "checkpoints" / "best.ckpt", weights_only=True) for run in (resumed, first))
    for part in ("state_dict", "optimizer_states", "lr_schedulers", "epoch", "global_step"):
        ours, theirs = tree_leaves(best[part]), tree_leaves(same[part])
        pairs = zip(ours, theirs, strict=True)
        assert all(torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b for a, b in pairs), part


def without_command(run: Run) -> dict[str, Any]:
    """Results without what says how the run was started."""
    return {key: value for key, value in timing_free(run.results).items() if key not in ("command", "config")}


@pytest.mark.slow
def test_a_run_that_was_killed_after_its_last_step_writes_its_results(first: Run, cache: Path, tmp_path: Path) -> None:
    """Also where the newest checkpoint was not written to its end."""
    killed = kill_at(18, tmp_path / "killed", cache, *TINY, "callbacks.recent.train_time_interval.seconds=0")
    resumed = train(tmp_path / "resumed", cache, *TINY, f"resume={killed}")
    assert without_command(resumed) == without_command(first)
    last = killed / "checkpoints" / "step_18.ckpt"
    last.write_bytes(last.read_bytes()[:10_000])
    again = train(tmp_path / "again", cache, *TINY, f"resume={last}")
    assert "step_18.ckpt is damaged" in again.said
    assert without_command(again) == without_command(first)
