"""The data of a run, from what it left in its folder."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from torch import Tensor

import qat.data
from qat.experiment import build
from qat.experiment.folders import run_folder_of
from qat.experiment.recorded_configuration import read_configuration
from qat.reading.malformed import malformed

DATA_SETS = ("cifar10", "digits", "image_folder", "mnist")
"""What a run's config.yaml may name as its data."""


def test_inputs(checkpoint: Path) -> Iterator[Tensor]:
    """The test images of the run that wrote a checkpoint, in batches, as its network sees them: float32 (N, C, H, W).

    Raises:
        ValueError: the run left no configuration, or its data are not valid.
        FileNotFoundError: its data are gone.
    """
    path = run_folder_of(checkpoint) / "config.yaml"
    if not path.is_file():
        raise ValueError(f"{path} does not exist, so the data of the run are not known: give --data PATH.")
    config: Any = read_configuration(path)
    with malformed(path, "is not the configuration of a run", "give --data PATH"):
        options: Any = OmegaConf.to_container(config.data)
        module = build.datamodule(config, _source(str(options.pop("_target_")))(**options))
    module.setup("test")
    for batch in module.test_dataloader():
        yield module.on_after_batch_transfer(batch, 0)[0]


def _source(target: str) -> Callable[..., Any]:
    """The data set of this project that a file names; it may name no others."""
    module, _, name = target.rpartition(".")
    if module != "qat.data" or name not in DATA_SETS:
        raise ValueError(f"its data are {target}, which is not a data set of qat")
    found: Callable[..., Any] = getattr(qat.data, name)
    return found
