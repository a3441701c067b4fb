"""`qat train -m sweep=optuna ...`: a search with Optuna, whose trials are jobs of a sweep.

hydra-optuna-sweeper 1.3.0, the newest for Hydra 1.3, needs Optuna < 3; 1.4.0rc3 takes Optuna 4.9, but needs Hydra 1.4, of which
there is no release. Neither resumes trials, nor goes on when one fails.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

from qat.experiment.sweep.grid_sweeper import GridSweeper
from qat.experiment.sweep.optuna_private import trial_id
from qat.experiment.sweep.space import Numbers, Space

if TYPE_CHECKING:
    import optuna

TRIAL = "trial.json"
"""In the folder of a job: where its trial is stored, for `PruneTrial`."""
SPACE = "space"


class OptunaSweeper(GridSweeper):
    """Asks Optuna for values, runs them as jobs, and tells it their objectives.

    The study is stored in the sweep's folder, or in a database. The same command goes on with it, in a second process too: a
    trial that was running and that no process runs any more is run first, from its checkpoint.

    Args:
        n_trials: of all processes and starts together.
        n_jobs: launched at once.
        storage: URL of a database; None: a journal in the sweep's folder.
        study: name of the study in it.
        sampler: of values; None: Optuna's default. Its seed is raised by the number of trials that exist.
        pruner: of trials; None: none.
        params: key -> values, as on the command line.
    """

    def __init__(
        self,
        n_trials: int,
        n_jobs: int,
        storage: str | None,
        study: str,
        sampler: DictConfig | None,
        pruner: DictConfig | None,
        params: DictConfig | None = None,
    ) -> None:
        super().__init__(params)
        self.n_trials, self.n_jobs, self.storage, self.study_name = n_trials, n_jobs, storage, study
        self.sampler, self.pruner = sampler, pruner

    def sweep(self, arguments: list[str]) -> Any:
        """Run the trials that are missing. The program ends with status 1 if one has failed."""
        from qat.experiment.sweep.ending import end_sweep

        assert self.config is not None
        folder = Path(self.config.hydra.sweep.dir)
        space = Space.of(self.all_arguments(arguments))
        folder.mkdir(parents=True, exist_ok=True)
        study = self._study(folder, space)
        left_out: set[int] = set()  # trials of other processes
        while trials := self._next_trials(study, space, folder, left_out):
            jobs = [space.job(trial.params, trial.number) for trial in trials]
            for job, trial in zip(jobs, trials, strict=True):
                self._note_trial(folder / job.name, study, trial)
            self.launch(folder, jobs)
            left_out |= {
                t.number for job, t in zip(jobs, trials, strict=True) if not self._tell(study, t, folder / job.name)
            }
        ended = [space.job(trial.params, trial.number) for trial in study.get_trials(deepcopy=False)]
        end_sweep(folder, ended, self.objectives, self.compose)

    def _study(self, folder: Path, space: Space) -> optuna.Study:
        from hydra.utils import instantiate

        from qat.experiment.errors import exit_with
        from qat.report.judgement.objectives import OBJECTIVES

        optuna = import_optuna()
        storage = open_storage(self.storage or str(folder / "optuna.journal"))
        names = [summary.study_name for summary in optuna.study.get_all_study_summaries(storage)]
        study = optuna.create_study(
            storage=storage,
            study_name=self.study_name,
            load_if_exists=True,
            directions=["maximize" if OBJECTIVES[name].higher else "minimize" for name in self.objectives],
        )
        described = json.dumps([self.objectives, space.fixed, {k: str(v) for k, v in space.varied.items()}])
        if self.study_name in names and study.user_attrs.get(SPACE, described) != described:
            exit_with(
                f"the study {self.study_name!r} in {folder} searches {study.user_attrs[SPACE]}, this sweep {described}: "
                "write hydra.sweep.dir=FOLDER with a new folder, or hydra.sweeper.study=NAME."
            )
        study.set_user_attr(SPACE, described)
        if self.sampler is not None:
            seed = self.sampler.get("seed")
            changed = {} if seed is None else {"seed": seed + len(study.get_trials(deepcopy=False))}
            study.sampler = instantiate(self.sampler, **changed)
        return study

    def _next_trials(
        self, study: optuna.Study, space: Space, folder: Path, left_out: set[int]
    ) -> list[optuna.trial.Trial]:
        """Up to n_jobs trials: first those whose process has ended, then new ones while there are fewer than n_trials."""
        from qat.experiment.folders import is_in_use

        optuna = import_optuna()
        existing = study.get_trials(deepcopy=False)
        chosen = []
        for frozen in existing:
            running = frozen.state == optuna.trial.TrialState.RUNNING and frozen.number not in left_out
            whole = len(frozen.params) == len(space.varied)
            if running and whole and not is_in_use(folder / space.job(frozen.params, frozen.number).name):
                chosen.append(optuna.trial.Trial(study, trial_id(frozen)))
        chosen = chosen[: self.n_jobs]
        distributions = {key: distribution(values) for key, values in space.varied.items()}
        while len(chosen) < self.n_jobs and len(study.get_trials(deepcopy=False)) < self.n_trials:
            chosen.append(study.ask(fixed_distributions=distributions))
        return chosen

    def _note_trial(self, folder: Path, study: optuna.Study, trial: optuna.trial.Trial) -> None:
        """Leave in the job's folder what its process needs to be pruned."""
        from qat.experiment.folders import obstacle
        from qat.files import write_atomically

        if self.pruner is None or len(self.objectives) > 1 or obstacle(folder):
            return
        storage = self.storage or str(folder.parent / "optuna.journal")
        pruner = OmegaConf.to_container(self.pruner, resolve=True)
        place = {"storage": storage, "study": study.study_name, "id": trial_id(trial), "number": trial.number}
        write_atomically(folder / TRIAL, json.dumps({**place, "pruner": pruner}))

    def _tell(self, study: optuna.Study, trial: optuna.trial.Trial, folder: Path) -> bool:
        """Tell Optuna how a trial ended; False if another process runs it."""
        from qat.experiment.sweep.job_state import job_state
        from qat.report.judgement.objectives import objective_values

        optuna = import_optuna()
        state = job_state(folder)
        if state.status in ("under way", "not finished"):
            return False
        values = None if state.results is None else objective_values(self.objectives, state.results)
        if isinstance(values, tuple) and None not in values:
            study.tell(trial.number, list(values), skip_if_finished=True)
        else:
            ending = optuna.trial.TrialState.PRUNED if state.status == "pruned" else optuna.trial.TrialState.FAIL
            study.tell(trial.number, state=ending, skip_if_finished=True)
        return True


def import_optuna() -> Any:
    """The module.

    Raises:
        SystemExit: it is not installed.
    """
    try:
        import optuna
    except ModuleNotFoundError:
        from qat.experiment.errors import exit_with

        exit_with("sweep=optuna needs Optuna: pip install 'qat-lightning[optuna]'.")
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna


def open_storage(place: str) -> optuna.storages.BaseStorage:
    """A database, if it is a URL, else a journal: a file to which processes append, over a network file system too."""
    optuna = import_optuna()
    if "://" in place:
        return optuna.storages.get_storage(place)
    return optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(place))


def distribution(values: Sequence[str] | Numbers) -> optuna.distributions.BaseDistribution:
    """What Optuna draws from."""
    optuna = import_optuna()
    if not isinstance(values, Numbers):
        return optuna.distributions.CategoricalDistribution(list(values))
    step = None if values.log else values.step
    if values.whole:
        return optuna.distributions.IntDistribution(int(values.low), int(values.high), values.log, int(step or 1))
    return optuna.distributions.FloatDistribution(values.low, values.high, values.log, step)
