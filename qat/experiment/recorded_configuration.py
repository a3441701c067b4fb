"""The configuration that a run left in its folder: plain values, whoever wrote them."""

from __future__ import annotations

from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from qat.reading.bounds import check_nesting
from qat.reading.malformed import malformed
from qat.reading.yaml_file import read_yaml


def read_configuration(path: Path) -> DictConfig:
    """The values in a run's config.yaml. It refers to nothing outside of it, such as the environment.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is not the configuration of a run.
    """
    with malformed(path, "is not the configuration of a run", "restore it"):
        content = read_yaml(path)
        if any(isinstance(value, str) and "${" in value for value in check_nesting(content)):
            raise ValueError("it refers to values outside of it")
        return OmegaConf.create(content)
