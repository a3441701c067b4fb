"""Hands the results of a fit to every logger of the Trainer, in the form that its kind shows best."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from qat.report import Results
from qat.report.text.flat import numbers
from qat.training.loggers.csv_files import log_to_csv
from qat.training.loggers.mlflow_results import log_to_mlflow
from qat.training.loggers.tensorboard_results import log_to_tensorboard
from qat.training.loggers.wandb_results import log_to_wandb

KINDS: dict[str, Callable[[Any, Results, Path], None]] = {
    "WandbLogger": log_to_wandb,
    "TensorBoardLogger": log_to_tensorboard,
    "CSVLogger": log_to_csv,
    "MLFlowLogger": log_to_mlflow,
}
"""Class of Lightning's -> function of (logger, results, folder)."""


def log_results(loggers: Sequence[Any], results: Results, folder: Path) -> None:
    """Log everything that the results say. What a logger cannot do is a warning: the results are written already.

    Args:
        loggers: of the Trainer. Of a kind that is not known here, numbers alone are logged.
        results: of the fit.
        folder: with the report, its pictures and the ONNX file.
    """
    for logger in loggers:
        kind = next((KINDS[c.__name__] for c in type(logger).__mro__ if c.__name__ in KINDS), _log_numbers)
        try:
            kind(logger, results, folder)
        except Exception as error:
            warnings.warn(f"{type(logger).__name__} did not take the results: {error}", stacklevel=2)


def log_point(loggers: Sequence[Any], values: Mapping[str, float | None], step: int) -> None:
    """Log numbers of a step of the fit; those that are None are left out."""
    measured = {name: value for name, value in values.items() if value is not None}
    for logger in loggers:
        logger.log_metrics(measured, step=step)


def _log_numbers(logger: Any, results: Results, folder: Path) -> None:
    logger.log_metrics(numbers(results), step=results.training.steps if results.training else 0)
