"""Observers: the first range of a tensor, from data, one per file.

A new one needs a file here, a YAML in `configs/observer/` and a row in `docs/observers.md`.
"""

from qat.observers.base import Observer
from qat.observers.kl import KL
from qat.observers.mean_abs import MeanAbs
from qat.observers.min_max import MinMax
from qat.observers.moving_average import MovingAverage
from qat.observers.mse import MSE
from qat.observers.percentile import Percentile

__all__ = ["KL", "MSE", "MeanAbs", "MinMax", "MovingAverage", "Observer", "Percentile"]
