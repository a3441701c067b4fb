"""The end of a sweep: its table, pictures and best recipe, and the exit status."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from qat.experiment.answers import answer
from qat.experiment.errors import FAILED, exit_with
from qat.experiment.folders import shortened
from qat.experiment.schema.values import Objective
from qat.experiment.sweep.best_recipe import RECIPE, Compose, best_command, write_best_recipe
from qat.experiment.sweep.grid import Job
from qat.experiment.sweep.job_state import job_state, task_part
from qat.experiment.sweep.picture import draw_front
from qat.experiment.sweep.summary import Entry, best_group, grouped
from qat.experiment.sweep.text import csv_text, failure_sentence, job_records, markdown, summary_table
from qat.files import write_atomically

PICTURE = "pareto.png"


def end_sweep(folder: Path, jobs: Sequence[Job], objectives: Sequence[Objective], compose: Compose) -> None:
    """Write everything about the sweep into its folder, print the table, and end the program if a job has failed.

    Args:
        folder: of the sweep.
        jobs: in the order of the table.
        objectives: what the sweep looks for; the first chooses the best configuration.
        compose: from overrides to a configuration, Hydra's part included.

    Raises:
        SystemExit: with status 1, if a job has no results.
    """
    entries = [Entry(job, job_state(folder / job.name, task_part(compose(list(job.overrides))))) for job in jobs]
    write_sweep(folder, entries, objectives, compose)
    failed = [entry for entry in entries if entry.state.status not in ("finished", "pruned", "under way")]
    under_way = sum(entry.state.status == "under way" for entry in entries)
    if under_way:
        print(
            f"{under_way} of {len(entries)} jobs are run by other processes: the one that ends last has the whole table."
        )
    if failed:
        exit_with(failure_sentence(failed, len(entries)), FAILED)


def write_sweep(folder: Path, entries: Sequence[Entry], objectives: Sequence[Objective], compose: Compose) -> None:
    """Write sweep.csv, sweep.md, pareto.png and the best configuration as a recipe, and print the table."""
    groups = grouped(entries)
    best = best_group(groups, objectives[0])
    write_atomically(folder / "sweep.csv", csv_text(entries))
    if any(group.results for group in groups):
        write_atomically(folder / PICTURE, draw_front(groups))
    if best is not None:
        write_best_recipe(folder / RECIPE, best, compose(list(best.entries[0].job.overrides)), compose)
    write_atomically(folder / "sweep.md", markdown(folder, entries, groups, best, objectives))
    print(summary_table(groups))
    print(f"\n{shortened(folder / 'sweep.md')}, sweep.csv and {PICTURE} beside it")
    if best is not None:
        print(best_command(folder), flush=True)
    recipe = None if best is None else str(folder / RECIPE)
    answer({"folder": str(folder), "objectives": list(objectives), "jobs": job_records(entries), "best_recipe": recipe})
