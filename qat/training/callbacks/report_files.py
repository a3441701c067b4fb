"""Every file of a report."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import lightning as L

from qat.report import Results, print_report, write_results
from qat.report.pages.markdown import write_report
from qat.training.lightning.progress_bar import end_bar
from qat.training.lightning.rank_zero import run_on_rank_zero
from qat.training.loggers.log_results import log_results

RESULTS = "results.json"


def report_folder(trainer: L.Trainer, folder: str | Path | None) -> Path:
    """Where a report is written. All processes must call it."""
    return Path(folder or trainer.log_dir or trainer.default_root_dir)  # a collective


def measure_and_write(trainer: L.Trainer, folder: str | Path | None, measure: Callable[[], Results]) -> Results:
    """Measure in process 0, which also writes, logs and prints the report. All processes must call it.

    folder: where to write. None: the logger's folder, else the Trainer's default_root_dir.
    """
    end_bar(trainer)
    where = report_folder(trainer, folder)

    def work() -> Results:
        results = measure()
        write_report(results, where)
        write_results(results, where / RESULTS)
        log_results(trainer.loggers, results, where)
        print_report(results, where=where)
        return results

    return run_on_rank_zero(trainer, work)
