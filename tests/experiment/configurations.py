"""The composed configuration, as `qat train` sees it."""

import copy
import functools
from typing import cast

from omegaconf import DictConfig, OmegaConf

from qat.experiment.configuration import CONFIGS, RECIPES, compose
from tests.paths import ROOT

__all__ = ["CONFIGS", "RECIPES", "ROOT", "changed", "composed"]


def composed(*overrides: str) -> DictConfig:
    """A copy of one that was composed before with the same overrides, if there was one."""
    return copy.deepcopy(_composed(*overrides))


def changed(*values: str) -> DictConfig:
    """The default configuration with other values, KEY=VALUE: what `composed` gives, without Hydra, which takes long."""
    return cast(DictConfig, OmegaConf.merge(composed(), OmegaConf.from_dotlist(list(values))))


_composed = functools.cache(compose)
