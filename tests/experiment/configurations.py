"""The composed configuration, as `qat train` sees it."""

from qat.experiment.configuration import CONFIGS, RECIPES
from qat.experiment.configuration import compose as composed
from tests.paths import ROOT

__all__ = ["CONFIGS", "RECIPES", "ROOT", "composed"]
