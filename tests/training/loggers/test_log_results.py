"""What loggers are told at the end of a fit, read from what the real packages wrote. The results were recorded before."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger
from PIL import Image

from qat.experiment.loggers import finish, wandb_logger
from qat.report import Results, read_results
from qat.training.loggers.log_results import log_point, log_results
from tests.paths import ROOT
from tests.training.loggers.wandb_file import read_wandb

RECORDED = ROOT / "benchmarks" / "results" / "digits_w2a2.json"


@pytest.fixture(scope="module")
def results() -> Results:
    return read_results(RECORDED)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    shutil.copy(RECORDED, tmp_path / "results.json")
    (tmp_path / "model.onnx").write_bytes(b"a file")
    Image.new("RGB", (5, 4)).save(tmp_path / "accuracy.png")
    return tmp_path


def recorded() -> Any:
    return json.loads(RECORDED.read_text())


def test_csv_files_hold_every_row_and_number(results: Results, folder: Path) -> None:
    logger = CSVLogger(str(folder), name="metrics", version="")
    log_point([logger], {"scale/conv": 0.25, "clipped/conv": None}, step=3)
    logger.save()
    log_results([logger], results, folder)
    with (folder / "metrics" / "comparison.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["name"] for row in rows] == [row["name"] for row in recorded()["rows"]]
    assert [float(row["value"]) for row in rows] == [row["top1"] for row in recorded()["rows"]]
    with (folder / "metrics" / "summary.csv").open() as file:
        summary = {line["name"]: line["value"] for line in csv.DictReader(file)}
    assert summary["verdict"] == recorded()["verdict"]["text"]
    assert float(summary["QAT in ONNX Runtime/size_bytes"]) == recorded()["rows"][-1]["size_bytes"]
    tensors = (folder / "metrics" / "tensors.csv").read_text().splitlines()
    assert len(tensors) == len(recorded()["tensors"]) + 1
    assert (folder / "metrics" / "metrics.csv").read_text().splitlines() == ["scale/conv,step", "0.25,3"]


def test_tensorboard_shows_hyperparameters_rows_histograms_and_pictures(results: Results, folder: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    logger = TensorBoardLogger(str(folder), name="tensorboard", version="")
    log_results([logger], results, folder)
    logger.finalize("success")
    read = EventAccumulator(str(folder / "tensorboard"), size_guidance={"scalars": 0, "histograms": 0, "tensors": 0})
    read.Reload()
    tags = read.Tags()
    deployed = next(row for row in recorded()["rows"] if row["name"] == "QAT in ONNX Runtime")
    assert read.Scalars("QAT in ONNX Runtime/value")[0].value == pytest.approx(deployed["top1"])
    assert {f"histogram/{t['name']}" for t in recorded()["tensors"] if t["counts"]} == set(tags["histograms"])
    first = recorded()["tensors"][0]
    assert read.Histograms(f"histogram/{first['name']}")[0].histogram_value.num == sum(first["counts"])
    assert tags["images"] == ["plots/accuracy"]
    text = {
        name: read.Tensors(f"{name}/text_summary")[0].tensor_proto.string_val[0].decode()
        for name in ("comparison", "verdict")
    }
    assert text["verdict"] == recorded()["verdict"]["text"]
    assert all(f"| {row['name']} |" in text["comparison"] for row in recorded()["rows"])
    parameters = (folder / "tensorboard" / "hparams.yaml").read_text()
    assert "epochs: 15" in parameters


@pytest.mark.slow  # W&B starts a process of its own
def test_wandb_holds_tables_histograms_pictures_the_artifact_and_the_verdict(
    results: Results, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import wandb

    monkeypatch.setenv("WANDB_MODE", "offline")
    logger = wandb_logger(folder, project="qat", name="mine")
    log_results([logger], results, folder)
    finish(logger)
    wandb.teardown()  # its process writes the file, and ends
    run = read_wandb(folder)
    assert run.name == "mine"
    assert [row["name"] for row in run.table("comparison")] == [row["name"] for row in recorded()["rows"]]
    assert [row["latency_ms_batch1"] for row in run.table("comparison")] == [
        row["latency_ms_batch1"] for row in recorded()["rows"]
    ]
    assert len(run.table("verification")) == len(recorded()["verification"]["sites"])
    assert [row["sensitivity_db"] for row in run.table("tensors")] == [
        t["sensitivity_db"] for t in recorded()["tensors"]
    ]
    histogram = next(t for t in recorded()["tensors"] if t["counts"])
    assert run.history[f"histogram/{histogram['name']}/values"] == [histogram["counts"]]
    assert "plots/accuracy/path" in run.history
    assert run.files["model"] == ["model.onnx", "results.json"]
    assert run.about["verdict"] == run.summary["verdict"] == recorded()["verdict"]["text"]
    assert run.summary["size"] == recorded()["rows"][-1]["size_bytes"]
    assert run.summary["verified"] is True


class Broken(Logger):
    """A logger whose server is gone."""

    name = version = "broken"

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        raise ConnectionError("no route to host")

    def log_hyperparams(self, *_: Any, **__: Any) -> None: ...


def test_a_logger_that_fails_loses_no_results(results: Results, folder: Path) -> None:
    with pytest.warns(UserWarning, match="Broken did not take the results: no route to host"):
        log_results([Broken(), CSVLogger(str(folder), name="metrics", version="")], results, folder)
    assert (folder / "metrics" / "comparison.csv").is_file()
