"""The Hydra program that `qat train` and `python train.py` both start."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from qat.experiment.configuration import CONFIG_NAME, CONFIGS, register_recipes
from qat.experiment.errors import composition_errors, configuration_errors
from qat.experiment.folders import register_new_folder, shortened
from qat.experiment.interruption import Interrupted, SignalHandler, command_line, continuing_command, what_is_kept
from qat.experiment.worker_processes import is_worker, worker_process


def main(program: str = "qat train") -> None:
    """Train, compare with PTQ, export, verify and report, as the overrides in `sys.argv[1:]` say.

    A mistake in them ends the program with one sentence on standard error; so does a signal, which also leaves a checkpoint.

    Args:
        program: the words that started the program, for the command in results.json.
    """

    @hydra.main(version_base="1.3", config_path=str(CONFIGS), config_name=CONFIG_NAME)
    def start(config: DictConfig) -> None:
        hydra_config = HydraConfig.get()
        folder = Path(hydra_config.runtime.output_dir)
        sweeps = hydra_config.mode == RunMode.MULTIRUN
        with _explained(signals, folder, program, list(hydra_config.overrides.task) if sweeps else None):
            from qat.experiment.run import run  # late: --help need not wait for torch and Lightning

            with configuration_errors(debug=config.debug):
                run(
                    config,
                    folder=folder,
                    recipe=hydra_config.runtime.choices["recipe"],
                    command=shlex.join([*program.split(), *sys.argv[1:]]),
                    signals=signals,
                )

    _announce(program)
    register_recipes()
    register_new_folder()
    try:
        with SignalHandler() as signals, composition_errors(), worker_process():
            start()
    except Interrupted as signal:
        sys.exit(signal.status)


@contextmanager
def _explained(signals: SignalHandler, folder: Path, program: str, overrides: Sequence[str] | None) -> Iterator[None]:
    """Inside the `with` block, a signal prints what is kept and the command that goes on."""
    try:
        yield
    except Interrupted as signal:
        if not is_worker():
            command = continuing_command(command_line(program, overrides), shortened(folder))
            print(
                f"{signal}, during {signals.stage}. {what_is_kept(folder, signals.stage)} Go on with:\n{command}",
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
