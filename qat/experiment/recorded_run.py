"""The data of a run, from what it left in its folder."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from torch import Tensor

from qat.experiment import build
from qat.experiment.folders import run_folder_of


def test_inputs(checkpoint: Path) -> Iterator[Tensor]:
    """The test images of the run that wrote a checkpoint, in batches, as its network sees them: float32 (N, C, H, W).

    Raises:
        ValueError: the run left no configuration, or its data are not valid.
        FileNotFoundError: its data are gone.
    """
    path = run_folder_of(checkpoint) / "config.yaml"
    if not path.is_file():
        raise ValueError(f"{path} does not exist, so the data of the run are not known: give --data PATH.")
    config: Any = OmegaConf.load(path)
    module = build.datamodule(config, build.part(config.data, "data"))
    module.setup("test")
    for batch in module.test_dataloader():
        yield module.on_after_batch_transfer(batch, 0)[0]
