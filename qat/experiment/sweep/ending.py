"""The end of a sweep: its table, pictures and best recipe, and the exit status."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from qat.experiment.errors import exit_with, sentence
from qat.experiment.folders import shortened
from qat.experiment.schema.values import Objective
from qat.experiment.sweep.best_recipe import RECIPE, Compose, best_command, write_best_recipe
from qat.experiment.sweep.grid import Job
from qat.experiment.sweep.job_state import job_state, task_part
from qat.experiment.sweep.picture import draw_front
from qat.experiment.sweep.summary import Entry, best_group, grouped
from qat.experiment.sweep.text import csv_text, failure_sentence, markdown, summary_table
from qat.files import write_atomically

log = logging.getLogger(__name__)
PICTURE = "pareto.png"


def log_launch_error(error: Exception) -> None:
    """Say that the launcher failed, rather than a job."""
    log.error("the launcher ended with an error (%s): %s", type(error).__name__, sentence(error))


def end_sweep(folder: Path, jobs: Sequence[Job], objective: Objective, compose: Compose) -> None:
    """Write everything about the sweep into its folder, print the table, and end the program if a job has failed.

    Args:
        folder: of the sweep.
        jobs: in the order of the table.
        objective: what the best configuration is chosen by.
        compose: from overrides to a configuration, Hydra's part included.

    Raises:
        SystemExit: with status 1, if a job has no results.
    """
    entries = [Entry(job, job_state(folder / job.name, task_part(compose(list(job.overrides))))) for job in jobs]
    write_sweep(folder, entries, objective, compose)
    failed = [entry for entry in entries if entry.state.status not in ("finished", "pruned")]
    if failed:
        exit_with(failure_sentence(failed, len(entries)))


def write_sweep(folder: Path, entries: Sequence[Entry], objective: Objective, compose: Compose) -> None:
    """Write sweep.csv, sweep.md, pareto.png and the best configuration as a recipe, and print the table."""
    groups = grouped(entries)
    best = best_group(groups, objective)
    write_atomically(folder / "sweep.csv", csv_text(entries))
    if any(group.results for group in groups):
        write_atomically(folder / PICTURE, draw_front(groups))
    if best is not None:
        write_best_recipe(folder / RECIPE, best, compose(list(best.entries[0].job.overrides)), compose)
    write_atomically(folder / "sweep.md", markdown(folder, entries, groups, best, objective))
    print(summary_table(groups))
    print(f"\n{shortened(folder / 'sweep.md')}, sweep.csv and {PICTURE} beside it")
    if best is not None:
        print(best_command(folder), flush=True)
