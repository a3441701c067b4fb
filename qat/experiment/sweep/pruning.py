"""Ends hopeless trials of a search early."""

from __future__ import annotations

import json
from pathlib import Path

import lightning as L
from hydra.utils import instantiate

from qat.experiment.sweep.optuna_sweeper import TRIAL, import_optuna, open_storage


class Pruned(Exception):
    """A trial is hopeless; the message says why it was ended."""


class PruneTrial(L.Callback):
    """Reports a validation metric to Optuna, and raises `Pruned` if its pruner says so. Does nothing with several processes.

    Args:
        folder: of the job; its trial.json says which trial it is.
        metric: the metric, as the module logs it.
    """

    def __init__(self, folder: Path, metric: str = "val/top1") -> None:
        optuna = import_optuna()
        note = json.loads((folder / TRIAL).read_text())
        self.metric, self.number, self.pruner = metric, note["number"], note["pruner"]
        self.study = optuna.load_study(
            study_name=note["study"], storage=open_storage(note["storage"]), pruner=instantiate(self.pruner)
        )
        self.trial = optuna.trial.Trial(self.study, note["id"])

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        value = trainer.callback_metrics.get(self.metric)
        if trainer.sanity_checking or trainer.world_size > 1 or value is None:
            return
        seen = self.study.get_trials(deepcopy=False)[self.number].intermediate_values
        if trainer.global_step not in seen:  # a resumed trial may have reported it
            self.trial.report(float(value), trainer.global_step)
        if self.trial.should_prune():
            rule = self.pruner["_target_"].rpartition(".")[2]
            raise Pruned(f"{self.metric} {float(value):.4f} at step {trainer.global_step:,} is hopeless ({rule}).")


def pruning_callbacks(folder: Path) -> list[L.Callback]:
    """The callback of a job that is a trial with a pruner; none for other jobs."""
    return [PruneTrial(folder)] if (folder / TRIAL).is_file() else []
