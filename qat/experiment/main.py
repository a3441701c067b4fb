"""The Hydra program that `qat train` and `python train.py` both start."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from qat.experiment.answers import answer_error, answer_run
from qat.experiment.configuration import CONFIG_NAME, CONFIGS, register_recipes
from qat.experiment.errors import composition_errors, configuration_errors, exit_with
from qat.experiment.folders import folder_of_one_run, register_new_folder, shortened
from qat.experiment.help import asks_for_help, help_text
from qat.experiment.options import options_first
from qat.experiment.signals import Interrupted, SignalHandler, command_line, continuing_command, what_is_kept
from qat.experiment.sweep.names import config_dir_options, influences, register_sweep_name
from qat.experiment.worker_processes import is_worker, worker_process

if TYPE_CHECKING:
    from qat.report import Results


def main(program: str = "qat train") -> None:
    """Train, compare with PTQ, export, verify and report, as the overrides in `sys.argv[1:]` say.

    A mistake in them ends the program with one sentence on standard error; so does a signal, which also leaves a checkpoint.

    Args:
        program: the words that started the program, for the command in results.json.
    """

    words = tuple(sys.argv[1:])
    if asks_for_help(words):
        print(help_text(words))
        return
    try:
        words = tuple(options_first(words))
    except ValueError as error:
        exit_with(str(error))
    sys.argv[1:] = words

    @hydra.main(version_base="1.3", config_path=str(CONFIGS), config_name=CONFIG_NAME)
    def start(config: DictConfig) -> float | tuple[float | None, ...] | None:
        hydra_config = HydraConfig.get()
        folder = Path(hydra_config.runtime.output_dir)
        recipe = hydra_config.runtime.choices["recipe"]
        with _explained(signals, folder, program):
            if hydra_config.mode == RunMode.MULTIRUN:
                written: Any = OmegaConf.to_container(hydra_config.overrides.task, resolve=False)
                results = _run_job(config, folder, recipe, program, words, written, signals)
            else:
                command = shlex.join([*program.split(), *words])
                with configuration_errors(signals, debug=config.debug), folder_of_one_run(folder):
                    from qat.experiment.run import run  # late: --help need not wait for torch and Lightning

                    with _answered(folder):
                        results = run(config, folder=folder, recipe=recipe, command=command, signals=signals)
            from qat.report.judgement.objectives import objective_values

            return objective_values(config.objective, results)

    _announce(program)
    register_recipes()
    register_new_folder()
    register_sweep_name(words)
    try:
        with SignalHandler() as signals, composition_errors(words), worker_process():
            start()
    except Interrupted as signal:
        answer_error(str(signal), signal.status)
        sys.exit(signal.status)


def _run_job(
    config: DictConfig,
    folder: Path,
    recipe: str,
    program: str,
    words: Sequence[str],
    overrides: Sequence[str],
    signals: SignalHandler,
) -> Results:
    """One job of a sweep. words: the arguments of the sweep; overrides: those of the job."""
    from qat.experiment.sweep.job import own_process, run_job

    own = [*config_dir_options(words), *filter(influences, overrides)]
    with own_process(own):
        return run_job(config, folder, recipe, shlex.join([*program.split(), *own]), signals)


@contextmanager
def _answered(folder: Path) -> Iterator[None]:
    """After the `with` block, the results are handed over, also of a run whose file did not pass its verification."""
    from qat.export import VerificationError

    try:
        yield
    except VerificationError:
        answer_run(folder)
        raise
    answer_run(folder)


@contextmanager
def _explained(signals: SignalHandler, folder: Path, program: str) -> Iterator[None]:
    """Inside the `with` block, a signal prints what is kept and the command that goes on."""
    try:
        yield
    except Interrupted as signal:
        if not is_worker():
            command = command_line(program)
            sweeps = HydraConfig.get().mode == RunMode.MULTIRUN
            continuing = shlex.join(command) if sweeps else continuing_command(command, shortened(folder))
            print(
                f"{signal}, during {signals.stage}. {what_is_kept(folder, signals.stage)} Go on with:\n{continuing}",
                file=sys.stderr,
            )
        raise


def _announce(program: str) -> None:
    """Say at once that something happens: reading the configuration and loading torch take seconds."""
    asks = [a for a in sys.argv[1:] if a.startswith("-") and a not in ("-m", "--multirun")]
    if not asks and "LOCAL_RANK" not in os.environ:  # --help and --cfg answer on standard output, workers are silent
        print(f"{program}: reading the configuration, loading torch and Lightning", flush=True)


if __name__ == "__main__":  # the other processes of a `qat train` on several devices: see qat/cli/train.py
    main()
