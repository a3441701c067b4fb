"""One job of a sweep: skipped if it is finished, resumed if it was killed; if it fails, a sentence in its folder says why."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from omegaconf import DictConfig, open_dict

from qat.experiment.errors import expected_errors, sentence
from qat.experiment.folders import FolderInUse, folder_of_one_run, shortened
from qat.experiment.run import run
from qat.experiment.signals import SignalHandler
from qat.experiment.sweep import job_state
from qat.experiment.sweep.pruning import Pruned, pruning_callbacks
from qat.report import Results

log = logging.getLogger(__name__)


class JobFailed(Exception):
    """A job ended without results; the message is the reason. The other jobs go on."""


def run_job(config: DictConfig, folder: Path, recipe: str, command: str, signals: SignalHandler) -> Results:
    """Run a job, or read what it left when it was run before.

    Args:
        config: the composed configuration; `resume` is set here.
        folder: of the job.
        recipe: name of the run.
        command: that repeats this run alone.
        signals: receives the signals that interrupt the sweep.

    Raises:
        JobFailed: it has no results, now or from before.
    """
    try:
        with folder_of_one_run(folder):
            return _run(config, folder, recipe, command, signals)
    except FolderInUse:
        log.info("%s is run by another process: skipped", shortened(folder))
        raise JobFailed("another process runs it.") from None
    except Pruned as pruned:
        job_state.record_pruning(folder, str(pruned))
        log.info("%s is pruned: %s", shortened(folder), pruned)
        raise JobFailed(f"pruned: {pruned}") from None
    except JobFailed as failed:
        log.info("%s: %s", shortened(folder), failed)
        raise
    except Exception as error:
        if not isinstance(error, expected_errors()):
            log.exception("%s failed", shortened(folder))
        reason = sentence(error)
        job_state.record_failure(folder, reason)
        print(f"error: {shortened(folder)}: {reason}", file=sys.stderr, flush=True)
        raise JobFailed(reason) from None


def _run(config: DictConfig, folder: Path, recipe: str, command: str, signals: SignalHandler) -> Results:
    state = job_state.job_state(folder, config, locked=True)
    if state.results is not None:
        log.info("%s is finished: skipped", shortened(folder))
        return state.results
    if state.status == "other":
        raise JobFailed(f"its folder holds the results of another configuration: {state.reason}.")
    if state.status == "pruned":
        raise JobFailed(f"pruned: {state.reason}")
    job_state.set_aside(folder)
    checkpoint = job_state.to_resume(folder, config)
    if checkpoint is not None:
        log.info("%s goes on from %s", shortened(folder), shortened(checkpoint))
        with open_dict(config):
            config.resume = str(checkpoint)
    further = pruning_callbacks(folder)
    results = run(config, folder=folder, recipe=recipe, command=command, signals=signals, further=further)
    job_state.forget_earlier(folder)
    return results


@contextmanager
def own_process(words: Sequence[str]) -> Iterator[None]:
    """Inside the `with` block, it looks as if the process had been started for one job alone.

    Lightning starts further processes with the arguments of this one, and notes in the environment that it has. What it leaves
    is removed, so that the next job starts its own.

    Args:
        words: the arguments that run this job alone.
    """
    arguments, environment = sys.argv, dict(os.environ)
    sys.argv = [arguments[0], *words]
    try:
        yield
    finally:
        sys.argv = arguments
        os.environ.clear()
        os.environ.update(environment)
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
