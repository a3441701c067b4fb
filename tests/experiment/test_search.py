"""Searches: what a space means, Optuna's trials, and W&B's sweep file. The jobs have results that were recorded before."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig, OmegaConf

from qat.experiment.configuration import CONFIGS, register_recipes
from qat.experiment.early_check import EarlyCheck, _check_repetition
from qat.experiment.folders import folder_of_one_run
from qat.experiment.schema import check_configuration
from qat.experiment.sweep.grid import Job
from qat.experiment.sweep.job_state import FAILURE, PRUNED
from qat.experiment.sweep.optuna_sweeper import TRIAL, OptunaSweeper, distribution, open_storage
from qat.experiment.sweep.space import Numbers, Space
from tests.experiment.configurations import composed
from tests.paths import ROOT

RECORDED = ROOT / "benchmarks" / "results"
POLICIES = {"w8a8": "digits_w8a8", "w4a8": "digits_w4a8", "w2a2": "digits_w2a2"}
SEARCH = ["policy=w8a8,w4a8,w2a2", "optim.lr=tag(log,interval(0.001,0.1))"]


@pytest.fixture(autouse=True)
def _hydra() -> None:
    register_recipes()
    GlobalHydra.instance().clear()
    initialize_config_dir(str(CONFIGS), version_base="1.3")


def test_a_space_is_fixed_and_varied_keys() -> None:
    space = Space.of(["seed=3", *SEARCH, "batch_size=range(16,65,16)", "validations=int(interval(1,4))"])
    assert space.fixed == ("seed=3",)
    assert space.varied == {
        "policy": ("w8a8", "w4a8", "w2a2"),
        "optim.lr": Numbers(0.001, 0.1, None, log=True),
        "batch_size": Numbers(16, 64, 16),
        "validations": Numbers(1, 4, 1),
    }
    examples = [job.choices for job in space.examples()]
    assert examples[0] == {"policy": "w8a8", "optim.lr": "0.001", "batch_size": "16", "validations": "1"}
    ends = [("w4a8", "0.001", "16", "1"), ("w2a2", "0.001", "16", "1"), ("w8a8", "0.1", "16", "1")]
    ends += [("w8a8", "0.001", "64", "1"), ("w8a8", "0.001", "16", "4")]
    assert [tuple(example.values()) for example in examples[1:]] == ends
    job = space.job({"policy": "w4a8", "optim.lr": 0.02}, number=7)
    assert (job.overrides, job.name) == (("seed=3", "policy=w4a8", "optim.lr=0.02"), "7,policy=w4a8,optim.lr=0.02")


def test_a_list_of_sweeps_that_takes_the_search_back_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    hydra = {
        "overrides": {"task": ["sweep=[optuna,joblib]"]},
        "sweeper": {"_target_": "hydra_plugins.qat_sweepers.GridSweeper"},
    }
    with pytest.raises(SystemExit):
        EarlyCheck().on_multirun_start(OmegaConf.create({"hydra": hydra}))
    assert "write sweep=[joblib,optuna]" in capsys.readouterr().err


def test_an_option_that_does_not_exist_is_refused_before_the_first_job(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    hydra = {
        "overrides": {"task": ["policy=w8a8,w9q9"]},
        "sweeper": {"_target_": "hydra_plugins.qat_sweepers.GridSweeper"},
    }
    whole = hydra_compose("config", return_hydra_config=True)
    OmegaConf.set_struct(whole, False)
    whole.hydra.sweeper = hydra["sweeper"]
    whole.hydra.overrides.task = hydra["overrides"]["task"]
    monkeypatch.setattr("qat.experiment.early_check._check", lambda *_: None)
    with pytest.raises(SystemExit):
        EarlyCheck().on_multirun_start(whole)
    assert "policy 'w9q9' does not exist: write policy=NAME with one of" in capsys.readouterr().err


class Recorded(OptunaSweeper):
    """Its jobs get results that were recorded for their policy; `endings` are files that some get instead."""

    endings: dict[int, str]
    launched: list[Job]

    def launch(self, folder: Path, jobs: Sequence[Job]) -> None:
        for job in jobs:
            self.launched.append(job)
            ending = self.endings.get(len(self.launched))
            (folder / job.name).mkdir(exist_ok=True, parents=True)
            if ending == "kill":
                raise KeyboardInterrupt
            if ending:
                (folder / job.name / ending).write_text("it was so\n")
            else:
                shutil.copy(RECORDED / f"{POLICIES[job.choices['policy']]}.json", folder / job.name / "results.json")


def sweeper(folder: Path, monkeypatch: pytest.MonkeyPatch, *overrides: str, **endings: str) -> Recorded:
    pytest.importorskip("optuna", reason="the extra optuna is not installed")
    monkeypatch.setattr("qat.experiment.sweep.ending.end_sweep", lambda *_: None)
    config = hydra_compose(
        "config", ["sweep=optuna", f"hydra.sweep.dir={folder}", *overrides], return_hydra_config=True
    )
    options: Any = {k: v for k, v in config.hydra.sweeper.items() if not str(k).startswith("_")}
    options["sampler"] = OmegaConf.create(OmegaConf.to_container(config)["hydra"]["sweeper"]["sampler"] | {"seed": 0})  # type: ignore[index]
    made = Recorded(**options)
    made.endings, made.launched = {int(k[1:]): v for k, v in endings.items()}, []
    made.config, made.hydra_context = config, SimpleNamespace(config_loader=None)  # type: ignore[assignment]
    return made


def states(folder: Path) -> list[str]:
    import optuna

    study = optuna.load_study(study_name="sweep", storage=open_storage(str(folder / "optuna.journal")))
    return [trial.state.name for trial in study.trials]


def test_trials_are_counted_over_starts_and_told_how_they_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = sweeper(tmp_path, monkeypatch, "hydra.sweeper.n_trials=5", n2=FAILURE, n3=PRUNED, n4="kill")
    with pytest.raises(KeyboardInterrupt):
        first.sweep(SEARCH)
    assert states(tmp_path) == ["COMPLETE", "FAIL", "PRUNED", "RUNNING"]
    second = sweeper(tmp_path, monkeypatch, "hydra.sweeper.n_trials=5")
    second.sweep(SEARCH)
    assert states(tmp_path) == ["COMPLETE", "FAIL", "PRUNED", "COMPLETE", "COMPLETE"]
    assert second.launched[0] == first.launched[-1]  # the killed one, with its values and in its folder
    values = [one.choices["optim.lr"] for one in (*first.launched, *second.launched[1:])]
    assert len(set(values)) == 5  # a second start draws other values, with the same seed
    note = json.loads((tmp_path / first.launched[0].name / TRIAL).read_text())
    assert (note["study"], note["number"]) == ("sweep", 0)


def test_a_trial_that_another_process_runs_is_left_to_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = sweeper(tmp_path, monkeypatch, "hydra.sweeper.n_trials=2", n1="kill")
    with pytest.raises(KeyboardInterrupt):
        other.sweep(SEARCH)
    mine = sweeper(tmp_path, monkeypatch, "hydra.sweeper.n_trials=2")
    with folder_of_one_run(tmp_path / other.launched[0].name):
        mine.sweep(SEARCH)
    assert states(tmp_path) == ["RUNNING", "COMPLETE"]


def test_a_file_in_place_of_a_trials_folder_is_a_trial_that_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = sweeper(tmp_path, monkeypatch, "hydra.sweeper.n_trials=1")
    monkeypatch.setattr(made, "launch", lambda *_: None)
    for policy in POLICIES:
        (tmp_path / f"0,policy={policy}").touch()
    made.sweep([f"policy={','.join(POLICIES)}"])
    assert states(tmp_path) == ["FAIL"]


def test_several_objectives_have_directions_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    optuna = pytest.importorskip("optuna", reason="the extra optuna is not installed")
    made = sweeper(tmp_path, monkeypatch, "hydra.sweeper.n_trials=1", "objective=[accuracy,size]")
    made.sweep(SEARCH)
    study = optuna.load_study(study_name="sweep", storage=open_storage(str(tmp_path / "optuna.journal")))
    assert [direction.name for direction in study.directions] == ["MAXIMIZE", "MINIMIZE"]
    results = json.loads((tmp_path / made.launched[0].name / "results.json").read_text())
    assert study.trials[0].values[1] == results["rows"][-1]["size_bytes"]
    assert not (tmp_path / made.launched[0].name / TRIAL).exists()  # Optuna prunes nothing with several objectives


def test_another_space_in_the_same_study_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    sweeper(tmp_path, monkeypatch, "hydra.sweeper.n_trials=1").sweep(SEARCH)
    with pytest.raises(SystemExit):
        sweeper(tmp_path, monkeypatch, "hydra.sweeper.n_trials=2").sweep(["policy=w8a8,w4a4"])
    assert "write hydra.sweep.dir=FOLDER with a new folder" in capsys.readouterr().err


def test_distributions_are_those_of_the_space() -> None:
    optuna = pytest.importorskip("optuna", reason="the extra optuna is not installed")
    made = optuna.distributions
    assert distribution(("a", "b")) == made.CategoricalDistribution(["a", "b"])
    assert distribution(Numbers(16, 64, 16)) == made.IntDistribution(16, 64, step=16)
    assert distribution(Numbers(0.001, 0.1, None, log=True)) == made.FloatDistribution(0.001, 0.1, log=True)
    assert distribution(Numbers(0.0, 1.0, 0.25)) == made.FloatDistribution(0.0, 1.0, step=0.25)


@pytest.mark.slow  # W&B's launcher alone takes seconds to import
def test_the_sweep_file_of_wandb_drives_the_program_as_it_is() -> None:
    from wandb.sdk.launch.sweeps.utils import create_sweep_command, create_sweep_command_args

    file = yaml.safe_load((CONFIGS / "sweep" / "wandb.yaml").read_text())
    assert (ROOT / file["program"]).is_file()
    values = {
        key: {"value": options.get("values", [options.get("max")])[-1]} for key, options in file["parameters"].items()
    }
    words = create_sweep_command_args({"args": values})["args_no_hyphens"]
    command = create_sweep_command(list(file["command"]))
    assert command[:3] == ["${env}", "${interpreter}", "${program}"]
    assert command[-1] == "${args_no_hyphens}"
    config: DictConfig = composed(*command[3:-1], *words)
    check_configuration(config)
    assert (config.policy.preset, config.optim.lr, config.seed) == ("w4a4", 0.1, 2)


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (
            ["seed=1,2", "seed=3"],
            "seed=1,2 and seed=3 are of one key, and the last alone would count: write one of them.",
        ),
        (["seed=0,1,0"], "seed=0,1,0 has 0 twice, which is one run: write seed=0,1."),
        (["seed=0,1", "policy=w4a4,w8a8", "progressive=[8,8]", "optim.lr=choice(1,1)"], ""),
        (["seed=1", "seed=3"], ""),
    ],
)
def test_a_sweep_lists_every_run_once(overrides: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2") if said else nullcontext():
        _check_repetition(overrides)
    assert capsys.readouterr().err == (f"error: {said}\n" if said else "")
