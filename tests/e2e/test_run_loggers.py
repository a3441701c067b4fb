"""A whole run with each logger, read from what the real packages wrote without a network."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.e2e.test_front_door import environment
from tests.paths import ROOT
from tests.training.loggers.wandb_file import read_wandb

pytestmark = pytest.mark.slow

TINY = [
    *(
        "recipe=digits_w8a8",
        "policy=w4a4",
        "float.epochs=2",
        "trainer.max_epochs=2",
        "calibration_images=64",
        "ptq=quick",
    ),
    *("data.limit_train=400", "data.limit_test=100", "oscillation=track", "trainer.log_every_n_steps=1", "seed=5"),
]


def train(where: Path, logger: str) -> tuple[Path, dict[str, Any]]:
    settings = environment(where / "cache") | {"WANDB_MODE": "offline"}
    command = [sys.executable, str(ROOT / "train.py"), *TINY, f"logger={logger}", "hydra.run.dir=run"]
    done = subprocess.run(command, cwd=where, env=settings, capture_output=True, text=True, timeout=580)
    assert done.returncode == 0, done.stderr
    assert "did not take the results" not in done.stdout + done.stderr
    return where / "run", json.loads((where / "run" / "results.json").read_text())


def test_an_offline_run_of_wandb_holds_everything(tmp_path: Path) -> None:
    folder, results = train(tmp_path, "wandb")
    run = read_wandb(folder)
    assert (run.name, run.group) == ("digits_w8a8, seed 5", "digits_w8a8")
    assert run.tags == ["digits_w8a8", "w4a4", "digits", "ResNetCifar", "LSQ"]
    whole = yaml.safe_load((folder / "config.yaml").read_text())
    assert {key: run.config[key] for key in whole} == whole

    steps = results["training"]["steps"]
    assert len(run.history["lr-SGD/pg1"]) >= steps - 1
    assert run.history["lr-SGD/pg1"] != run.history["lr-SGD/pg1"][:1] * len(run.history["lr-SGD/pg1"])
    for trajectory in results["trajectories"]["tensors"]:
        assert run.history[f"scale/{trajectory['name']}"] == pytest.approx(trajectory["scales"])
        assert run.history[f"clipped/{trajectory['name']}"] == pytest.approx(trajectory["clipped"])
    assert len(run.history["train/oscillating"]) == 2
    assert run.history["val/top1"] == pytest.approx(results["training"]["val_top1"])

    rows = run.table("comparison")
    for name in ("name", "top5", "calibration_error", "size_bytes", "latency_ms_batch1", "latency_ms_batch32"):
        assert [row[name] for row in rows] == [row[name] for row in results["rows"]]
    for table, records in (
        ("sites", results["sites"]),
        ("verification", results["verification"]["sites"]),
        ("tensors", results["tensors"]),
        ("oscillations", results["oscillations"]["layers"]),
    ):
        rows = run.table(table)
        assert rows == [{key: record[key] for key in rows[0]} for record in records], table
    for tensor in results["tensors"]:
        assert run.history[f"histogram/{tensor['name']}/values"] == [tensor["counts"]]
    pictures = {path.stem for path in folder.glob("*.png")}
    assert {name.split("/")[1] for name in run.history if name.startswith("plots/")} == pictures >= {"accuracy", "size"}
    assert {"model.onnx", "results.json", "report.html"} <= set(run.files["model"])
    assert run.about["hashes"] == results["verification"]["hashes"]
    assert run.summary["verdict"] == results["verdict"]["text"]
    assert run.summary["accuracy"] == pytest.approx(max(results["training"]["val_top1"]))
    assert run.summary["verified"] is True


def test_tensorboard_and_csv_carry_the_same_numbers(tmp_path: Path) -> None:
    import csv

    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder, results = train(tmp_path, "tensorboard")
    read = EventAccumulator(str(folder / "tensorboard"), size_guidance={"scalars": 0})
    read.Reload()
    tags = set(read.Tags()["scalars"])
    assert {"lr-SGD/pg1", "train/oscillating", "accuracy", "size", "QAT in ONNX Runtime/value"} <= tags
    for trajectory in results["trajectories"]["tensors"]:
        values = [event.value for event in read.Scalars(f"scale/{trajectory['name']}")]
        assert values == pytest.approx(trajectory["scales"])

    (tmp_path / "csv").mkdir()
    folder, results = train(tmp_path / "csv", "csv")
    with (folder / "metrics" / "metrics.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert {"lr-SGD/pg1", "train/oscillating"} <= set(lines[0])
    trajectory = results["trajectories"]["tensors"][0]
    values = [float(line[f"scale/{trajectory['name']}"]) for line in lines if line[f"scale/{trajectory['name']}"]]
    assert values == pytest.approx(trajectory["scales"])


@pytest.mark.filterwarnings("ignore")  # of MLflow
def test_mlflow_gets_numbers_and_files(tmp_path: Path) -> None:
    if importlib.util.find_spec("mlflow") is None:
        pytest.skip("the extra mlflow is not installed")
    from mlflow import MlflowClient

    folder, results = train(tmp_path, "mlflow")
    client = MlflowClient(f"sqlite:///{folder}/mlflow.db")
    (run,) = client.search_runs([client.get_experiment_by_name("qat").experiment_id])
    assert run.info.run_name == "digits_w8a8, seed 5"
    assert run.data.tags["verdict"] == results["verdict"]["text"]
    assert run.data.metrics["size"] == results["rows"][-1]["size_bytes"]
    assert {"model.onnx", "results.json", "report.html"} <= {path.name for path in (folder / "mlflow").rglob("*")}
