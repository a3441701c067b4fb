"""Tables of sweeps and what is skipped, on folders with results that were recorded before."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import shutil
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf

from qat.experiment.configuration import CONFIGS, compose, register_recipes
from qat.experiment.errors import composition_errors
from qat.experiment.folders import folder_of_one_run
from qat.experiment.signals import SignalHandler
from qat.experiment.sweep import job as job_module
from qat.experiment.sweep.best_recipe import recipe_text
from qat.experiment.sweep.grid import Job, grid
from qat.experiment.sweep.grid_sweeper import GridSweeper
from qat.experiment.sweep.job import JobFailed, own_process, run_job
from qat.experiment.sweep.job_state import FAILURE, job_state, set_aside
from qat.experiment.sweep.names import job_name
from qat.experiment.sweep.picture import draw_front
from qat.experiment.sweep.space import Space
from qat.experiment.sweep.summary import Entry, best_group, grouped
from qat.experiment.sweep.text import csv_text, failure_sentence, markdown, notes, pipe_table
from qat.report import read_results
from qat.report.judgement.objectives import objective_values
from tests.experiment.configurations import composed
from tests.paths import ROOT

RECORDED = ROOT / "benchmarks" / "results"


def record(folder: Path, source: str) -> DictConfig:
    """Make `folder` that of a run whose results were recorded. Returns its configuration."""
    folder.mkdir(parents=True)
    shutil.copy(RECORDED / f"{source}.json", folder / "results.json")
    config = json.loads((folder / "results.json").read_text())["config"]
    (folder / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    return OmegaConf.create(config)


def job(**choices: str) -> Job:
    varied = [f"{key}={value}" for key, value in choices.items()]
    return Job(tuple(varied), choices, job_name(varied))


@pytest.fixture
def entries(tmp_path: Path) -> list[Entry]:
    jobs = [job(recipe=recipe, seed=seed) for recipe in ("digits_w8a8", "digits_w2a2") for seed in "012"]
    for one in jobs:
        suffix = "" if one.choices["seed"] == "0" else f".seed{one.choices['seed']}"
        record(tmp_path / one.name, f"{one.choices['recipe']}{suffix}")
    (tmp_path / jobs[4].name / FAILURE).write_text("no | disk\n")
    return [Entry(one, job_state(tmp_path / one.name)) for one in jobs]


def top1(source: str, name: str) -> float:
    results = json.loads((RECORDED / f"{source}.json").read_text())
    return next(float(row["top1"]) for row in results["rows"] if row["name"] == name)


def best_ptq(source: str) -> float:
    results = json.loads((RECORDED / f"{source}.json").read_text())
    return max(float(row["top1"]) for row in results["rows"] if row["kind"] == "ptq")


def test_means_and_differences_are_those_of_the_recorded_runs(entries: list[Entry], tmp_path: Path) -> None:
    names = ["digits_w8a8", "digits_w8a8.seed1", "digits_w8a8.seed2"]
    qat = [100 * top1(name, "QAT in ONNX Runtime") for name in names]
    over = [value - 100 * top1(name, "float") for value, name in zip(qat, names, strict=True)]
    rows = [line.split(" | ") for line in pipe_table(grouped(entries)).splitlines()]
    assert rows[2][0] == "| digits_w8a8"
    assert rows[2][1] == "3 of 3"
    assert rows[2][3] == f"{statistics.mean(qat):.2f} ± {statistics.stdev(qat):.2f}"
    assert rows[2][4] == f"{statistics.mean(over):+.2f} ± {statistics.stdev(over):.2f}"
    assert rows[3][:2] == ["| digits_w2a2", "2 of 3"]
    names = ["digits_w2a2", "digits_w2a2.seed2"]  # that of seed 1 failed
    for column, reference in ((4, lambda name: top1(name, "float")), (5, best_ptq)):
        over = [100 * (top1(name, "QAT in ONNX Runtime") - reference(name)) for name in names]
        assert rows[3][column] == f"{statistics.mean(over):+.2f} ± {statistics.stdev(over):.2f}"
    text = markdown(tmp_path, entries, grouped(entries), best_group(grouped(entries), "accuracy"), ["accuracy"])
    assert "5 of 6 jobs have results" in text
    assert "| `recipe=digits_w2a2,seed=1` | failed | no \\| disk |" in text
    assert text.count("python train.py recipe=") == 5


def test_of_equal_accuracies_the_smaller_file_is_best(tmp_path: Path) -> None:
    jobs = [job(policy=policy) for policy in ("w8a8", "w4a8", "w2a2")]
    for one, val, size in zip(jobs, (0.98, 0.98, 0.97), (86_000, 51_000, 34_000), strict=True):
        record(tmp_path / one.name, "digits_w8a8")
        path = tmp_path / one.name / "results.json"
        content = json.loads(path.read_text())
        content["training"]["val_top1"] = [val]
        trained = next(row for row in content["rows"] if row["name"] == "QAT in ONNX Runtime")
        trained["size_bytes"], trained["latency_ms_batch1"] = size, 0.0324
        path.write_text(json.dumps(content))
    entries = [Entry(one, job_state(tmp_path / one.name)) for one in jobs]
    groups = grouped(entries)
    best = best_group(groups, "accuracy")
    assert best is groups[1]
    text = markdown(tmp_path, entries, groups, best, ["accuracy"])
    assert "policy=w4a8, by the mean of its validation accuracy and, of 2 with the same, by its size, is " in text
    assert "| 51.0 kB | 0.032 |" in text


@pytest.mark.parametrize(("commit", "said"), [("0123456789abcdef", "commit 0123456789."), (None, "qat 9.8.")])
def test_the_code_is_named_by_its_commit_or_its_version(tmp_path: Path, commit: str | None, said: str) -> None:
    one = job(seed="0")
    record(tmp_path / one.name, "digits_w8a8")
    path = tmp_path / one.name / "results.json"
    content = json.loads(path.read_text())
    content["environment"] |= {"commit": commit, "versions": {"qat": "9.8"}}
    path.write_text(json.dumps(content))
    assert notes(grouped([Entry(one, job_state(tmp_path / one.name))])).endswith(said)


def test_a_float_network_that_was_not_trained_is_named(tmp_path: Path) -> None:
    one = job(seed="0")
    record(tmp_path / one.name, "digits_w8a8")
    path = tmp_path / one.name / "results.json"
    content = json.loads(path.read_text())
    content["verdict"]["outcome"] = "float_untrained"
    path.write_text(json.dumps(content))
    said = notes(grouped([Entry(one, job_state(tmp_path / one.name))]))
    assert said.endswith("The float network of 1 of 1 run was not trained: differences to it say nothing.")


def test_jobs_that_a_search_drew_twice_are_no_further_seeds(tmp_path: Path) -> None:
    """Equal configurations have equal numbers: a standard deviation of 0 would claim two seeds."""
    jobs = [Job(("policy=w4a8",), {"policy": "w4a8"}, f"{number},policy=w4a8") for number in range(3)]
    for one in jobs[1:]:
        record(tmp_path / one.name, "digits_w8a8")
    (group,) = grouped([Entry(one, job_state(tmp_path / one.name)) for one in jobs])
    assert [entry.job for entry in group.entries] == [jobs[1]]
    assert "| w4a8 | 1 of 1 |" in pipe_table([group])
    assert "±" not in pipe_table([group])


def test_the_csv_has_a_row_for_each_job(entries: list[Entry]) -> None:
    rows = list(csv.DictReader(io.StringIO(csv_text(entries))))
    assert [row["status"] for row in rows] == ["finished"] * 4 + ["failed", "finished"]
    assert float(rows[3]["test"]) == pytest.approx(top1("digits_w2a2", "QAT in ONNX Runtime"))
    assert float(rows[3]["best_ptq_value"]) == pytest.approx(top1("digits_w2a2", rows[3]["best_ptq"]))
    assert (rows[4]["test"], rows[4]["reason"]) == ("", "no | disk")
    assert failure_sentence([entries[4]], 6) == "1 of 6 jobs has no results: recipe=digits_w2a2,seed=1: no | disk."


def test_the_best_group_is_whole_and_best_in_its_objective(entries: list[Entry]) -> None:
    groups = grouped(entries)
    best = best_group(groups, "size")
    assert best is not None
    assert best.choices == {"recipe": "digits_w8a8"}  # the other one is smaller, but one of its jobs failed
    best = best_group([groups[1]], "size")
    assert best is not None
    assert best.choices == {"recipe": "digits_w2a2"}
    assert best_group([], "accuracy") is None


def test_the_picture_is_drawn(entries: list[Entry]) -> None:
    assert draw_front(grouped(entries)).startswith(b"\x89PNG")


def test_objectives_are_numbers_of_the_results(entries: list[Entry]) -> None:
    results = entries[0].state.results
    assert results is not None
    assert results.training is not None
    accuracy, size = objective_values(["accuracy", "size"], results)  # type: ignore[misc]
    assert accuracy == max(v for v in results.training.val_top1 if v is not None)  # not of the test images
    assert size == results.rows[-1].size_bytes


def test_a_finished_job_is_skipped_and_another_configuration_is_not_overwritten(tmp_path: Path) -> None:
    config = record(tmp_path / "job", "digits_w4a8")
    assert job_state(tmp_path / "job", config).status == "finished"
    config.resume, config.objective = "anywhere", "size"  # change no number
    assert job_state(tmp_path / "job", config).status == "finished"
    config.batch_size = 7
    state = job_state(tmp_path / "job", config)
    assert state.status == "other"
    assert state.reason == "there 'batch_size: 128', here 'batch_size: 7'"


def test_results_that_are_damaged_or_not_verified_are_no_results(tmp_path: Path) -> None:
    record(tmp_path / "job", "digits_w4a8")
    path = tmp_path / "job" / "results.json"
    results = json.loads(path.read_text())
    results["verification"]["code_mismatches"] = 1
    path.write_text(json.dumps(results))
    assert job_state(tmp_path / "job").status == "failed"
    path.write_text(path.read_text()[:1000])
    state = job_state(tmp_path / "job")
    assert state.status == "failed"
    assert "is not complete JSON" in state.reason
    assert job_state(tmp_path / "nothing").status == "not finished"


@pytest.mark.parametrize(
    ("blocked", "said"),
    [
        ("a file", "{job} is no folder: move it away"),
        ("a dangling link", "{job} is no folder: move it away"),
        ("a folder for the log", "{job}/train.log is a folder"),
    ],
)
def test_a_folder_that_cannot_be_written_is_a_row_and_ends_no_other_job(
    blocked: str, said: str, tmp_path: Path
) -> None:
    jobs = [job(policy=policy) for policy in ("w8a8", "w4a8", "w2a2")]
    place = tmp_path / jobs[1].name
    if blocked == "a file":
        place.touch()
    elif blocked == "a dangling link":
        place.symlink_to(tmp_path / "gone")
    else:
        (place / "train.log").mkdir(parents=True)
    sweeper = GridSweeper()
    launched: list[Any] = []

    class Hydra:
        def launch(self, overrides: list[Any], initial_job_idx: int) -> None:
            launched.extend(overrides)

    sweeper.launcher = Hydra()  # type: ignore[assignment]
    sweeper.launch(tmp_path, jobs)
    assert launched == [jobs[0].launched(tmp_path), jobs[2].launched(tmp_path)]
    states = [job_state(tmp_path / one.name) for one in jobs]
    assert [state.status for state in states] == ["not finished", "failed", "not finished"]
    assert states[1].reason.startswith(said.format(job=place))


def test_an_error_of_a_sweeps_folder_names_the_key_of_sweeps(capsys: pytest.CaptureFixture[str]) -> None:
    for words, key in ((["-m", "seed=0,1"], "hydra.sweep.dir"), (["seed=0"], "hydra.run.dir")):
        with pytest.raises(SystemExit), composition_errors(words):
            raise FileExistsError(17, "File exists", "out")
        assert capsys.readouterr().err.endswith(f"cannot be written (out: File exists): set {key} to a new folder.\n")


def test_folders_of_the_user_beside_earlier_starts_are_left_alone(tmp_path: Path) -> None:
    folder = tmp_path / "job"
    (folder / "earlier_1_kept").mkdir(parents=True)
    (folder / "metrics").mkdir()
    set_aside(folder)
    assert sorted(path.name for path in folder.iterdir()) == ["earlier_1", "earlier_1_kept"]


def test_a_job_that_another_process_runs_is_left_alone(tmp_path: Path) -> None:
    with folder_of_one_run(tmp_path / "job"):
        assert job_state(tmp_path / "job").status == "under way"
        with pytest.raises(JobFailed, match="another process runs it"):
            run_job(composed(), tmp_path / "job", "r", "c", SignalHandler())
    assert not list((tmp_path / "job").iterdir())


def test_a_job_that_fails_says_why_and_starts_anew_with_what_it_left_set_aside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "job"

    def fails(*_: Any, **__: Any) -> None:
        (folder / "metrics").mkdir()
        raise RuntimeError("out of\nmemory")

    monkeypatch.setattr(job_module, "run", fails)
    for start in (1, 2):
        with pytest.raises(JobFailed, match=r"^out of memory$"):
            run_job(composed(), folder, "r", "c", SignalHandler())
        assert job_state(folder) == job_state(folder, composed())
        assert (job_state(folder).status, job_state(folder).reason) == ("failed", "out of memory")
        assert len(list(folder.glob("earlier_*"))) == start - 1
    assert "out of memory" in capsys.readouterr().err


def test_a_killed_job_goes_on_from_its_newest_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    folder, config = tmp_path / "job", composed()
    monkeypatch.setattr("qat.training.checkpoint.latest.defect", lambda path: "")
    monkeypatch.setattr("qat.training.checkpoint.latest._newest", lambda paths, what: paths[-1])
    for step in (1, 2):
        (folder / "checkpoints").mkdir(parents=True)
        torch.save({}, folder / "checkpoints" / f"step_{step}.ckpt")
        (folder / "config.yaml").write_text(OmegaConf.to_yaml(config, resolve=True))
        set_aside(folder)
    seen = []
    results = read_results(RECORDED / "digits_w4a8.json")
    monkeypatch.setattr(job_module, "run", lambda config, **_: seen.append(config.resume) or results)
    assert run_job(config, folder, "r", "c", SignalHandler()) is results
    assert seen == [str(folder / "earlier_2" / "checkpoints" / "step_2.ckpt")]
    assert not list(folder.glob("earlier_*"))


def test_a_job_looks_like_a_run_of_its_own_and_leaves_nothing() -> None:
    """Otherwise Lightning starts further processes of the sweep, and none for the next job."""
    before = sys.argv
    with own_process(["seed=1"]):
        assert sys.argv == [before[0], "seed=1"]
        os.environ["LOCAL_RANK"] = "0"
    assert sys.argv is before
    assert "LOCAL_RANK" not in os.environ


def start_hydra() -> None:
    from hydra import initialize_config_dir

    register_recipes()
    GlobalHydra.instance().clear()
    initialize_config_dir(str(CONFIGS), version_base="1.3")


def test_a_grid_is_every_combination() -> None:
    start_hydra()
    jobs = grid(["policy=w8a8,w2a2", "optim.lr=0.1", "progressive=[8,4],[8,2]", "seed=range(2)"])
    assert len(jobs) == 8
    assert jobs[1].overrides == ("policy=w8a8", "optim.lr=0.1", "progressive=[8,4]", "seed=1")
    assert jobs[1].choices == {"policy": "w8a8", "progressive": "[8,4]", "seed": "1"}
    assert len({one.name for one in jobs}) == 8
    with pytest.raises(HydraException, match=r"optim.lr=interval\(0,1\) is an interval.* add sweep=optuna"):
        grid(["optim.lr=interval(0,1)"])


@pytest.mark.parametrize("override", ["seed=range(0)", "seed=range(3,1)", "policy=glob(nothing*)"])
@pytest.mark.parametrize("read", [grid, Space.of])
def test_a_sweep_without_values_is_refused(override: str, read: Callable[[list[str]], object]) -> None:
    """Else a grid ends well after no job, and a search in a traceback."""
    start_hydra()
    with pytest.raises(HydraException, match=f"{re.escape(override)} stands for no value: list at least one"):
        read([override])


def test_the_recipe_of_a_job_composes_to_its_configuration(entries: list[Entry], tmp_path: Path) -> None:
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir

    changes = ["recipe=digits_w4a8", "policy=w2a2", "optim=adam", "optim.lr=0.001", "policy.residual_bits=4", "seed=2"]
    start_hydra()
    config = hydra_compose("config", changes, return_hydra_config=True)
    text = recipe_text(grouped(entries)[0], config, lambda words: hydra_compose("config", words))
    path = tmp_path / "recipe" / "best.yaml"
    path.parent.mkdir()
    path.write_text(text)
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        again = hydra_compose("config", [f"hydra.searchpath=[file://{tmp_path}]", "recipe=best", "seed=2"])
    assert OmegaConf.to_container(again) == OmegaConf.to_container(compose(*changes))
