"""Train, compare with PTQ, export, verify, report: `python train.py recipe=cifar10_w4a8`; `--help` lists the recipes."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from qat.training.recipe.boundary import one_sentence, teaching
from qat.training.recipe.followers import following


@hydra.main(version_base="1.3", config_path="configs", config_name="config")
def main(config: DictConfig) -> None:
    from qat.training.recipe.experiment import run  # late: --help need not wait for Lightning

    running = HydraConfig.get()
    with teaching(debug=config.debug):
        run(
            config,
            folder=Path(running.runtime.output_dir),
            recipe=running.runtime.choices["recipe"],
            command=shlex.join(["python", "train.py", *sys.argv[1:]]),
        )


if __name__ == "__main__":
    with one_sentence(Path(__file__).parent / "configs"), following():
        main()
