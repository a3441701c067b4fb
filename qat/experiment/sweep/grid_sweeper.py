"""`qat train -m key=a,b,c`: every combination is a job; a job that fails is a row of the table, and the rest goes on."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.plugins import Plugins
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, open_dict

from qat.experiment.sweep.grid import Job, grid

if TYPE_CHECKING:
    from qat.experiment.schema.values import Objective

log = logging.getLogger(__name__)


class GridSweeper(Sweeper):
    """Launches the jobs that have no results yet in the folder of the sweep, and ends it with its table.

    Args:
        params: key -> values, as on the command line, for sweeps that a configuration describes.
    """

    def __init__(self, params: DictConfig | None = None) -> None:
        self.params = {str(key): values for key, values in (params or {}).items()}
        self.config: DictConfig | None = None
        self.launcher: Launcher | None = None
        self.hydra_context: HydraContext | None = None

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Called by Hydra before `sweep`."""
        with open_dict(config.hydra.sweep):  # what the name is made of is known in this process alone
            config.hydra.sweep.dir = str(Path(config.hydra.sweep.dir).absolute())
        self.config, self.hydra_context = config, hydra_context
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> Any:
        """Run the jobs. The program ends with status 1 if one has failed."""
        from qat.experiment.sweep.ending import end_sweep  # late: every Hydra program loads this module

        assert self.config is not None
        folder = Path(self.config.hydra.sweep.dir)
        jobs = grid(self.all_arguments(arguments))
        self._refuse_others(folder, jobs)
        folder.mkdir(parents=True, exist_ok=True)
        self.launch(folder, jobs)
        end_sweep(folder, jobs, self.objectives, self.compose)

    @property
    def objectives(self) -> list[Objective]:
        """What the sweep looks for."""
        assert self.config is not None
        names: Any = self.config.objective
        chosen: list[Objective] = [names] if isinstance(names, str) else list(names)  # type: ignore[list-item]
        return chosen

    def all_arguments(self, arguments: Sequence[str]) -> list[str]:
        """The arguments of the configuration and of the command line."""
        return [*(f"{key}={values}" for key, values in self.params.items()), *arguments]

    def launch(self, folder: Path, jobs: Sequence[Job]) -> None:
        """Run the jobs whose folders can be written, which Hydra does before a job begins: it would end the others, too.

        The folders tell how the jobs ended; if a launcher's processes end without an answer, it is logged.
        """
        from qat.experiment.folders import obstacle

        assert self.launcher is not None
        possible = []
        for job in jobs:
            if reason := obstacle(folder / job.name):
                log.error("%s: %s", job.name, reason)
            else:
                possible.append(job.launched(folder))
        try:
            if possible:
                self.launcher.launch(possible, initial_job_idx=0)
        except Exception as error:
            log.error("the launcher ended with an error (%s): %s", type(error).__name__, error)

    def compose(self, overrides: list[str]) -> DictConfig:
        """The configuration of a job, as its run sees it; `hydra` too."""
        assert self.hydra_context is not None
        assert self.config is not None
        return self.hydra_context.config_loader.load_sweep_config(self.config, overrides)

    def _refuse_others(self, folder: Path, jobs: Sequence[Job]) -> None:
        from qat.experiment.errors import exit_with
        from qat.experiment.sweep.job_state import job_state, task_part

        for job in jobs:
            if not (folder / job.name).is_dir():
                continue
            state = job_state(folder / job.name, task_part(self.compose(list(job.overrides))))
            if state.status == "other":
                exit_with(
                    f"{folder / job.name} holds the results of another configuration ({state.reason}): write "
                    "hydra.sweep.dir=FOLDER with a new folder, or delete this one."
                )
