"""Train, compare with PTQ, export, verify, report: `python train.py recipe=cifar10_w4a8`; `--help` lists the recipes."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from qat.experiment.errors import composition_errors, configuration_errors
from qat.experiment.worker_processes import worker_process


@hydra.main(version_base="1.3", config_path="configs", config_name="config")
def main(config: DictConfig) -> None:
    from qat.experiment.run import run  # late: --help need not wait for Lightning

    running = HydraConfig.get()
    with configuration_errors(debug=config.debug):
        run(
            config,
            folder=Path(running.runtime.output_dir),
            recipe=running.runtime.choices["recipe"],
            command=shlex.join(["python", "train.py", *sys.argv[1:]]),
        )


if __name__ == "__main__":
    with composition_errors(Path(__file__).parent / "configs"), worker_process():
        main()
