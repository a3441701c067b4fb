"""The Hydra program that `qat train` and `python train.py` both start."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from qat.experiment.configuration import CONFIG_NAME, CONFIGS, register_recipes
from qat.experiment.errors import composition_errors, configuration_errors
from qat.experiment.worker_processes import worker_process


def main(program: str = "qat train") -> None:
    """Train, compare with PTQ, export, verify and report, as the overrides in `sys.argv[1:]` say.

    A mistake in them ends the program with one sentence on standard error.

    Args:
        program: the words that started the program, for the command in results.json.
    """

    @hydra.main(version_base="1.3", config_path=str(CONFIGS), config_name=CONFIG_NAME)
    def start(config: DictConfig) -> None:
        from qat.experiment.run import run  # late: --help need not wait for torch and Lightning

        hydra_config = HydraConfig.get()
        with configuration_errors(debug=config.debug):
            run(
                config,
                folder=Path(hydra_config.runtime.output_dir),
                recipe=hydra_config.runtime.choices["recipe"],
                command=shlex.join([*program.split(), *sys.argv[1:]]),
            )

    register_recipes()
    with composition_errors(), worker_process():
        start()


if __name__ == "__main__":  # the other processes of a `qat train` on several devices: see qat/cli/train.py
    main()
