"""Weights & Biases, offline unless somebody is logged in."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import WandbLogger

from qat.report import Results


def wandb_logger(save_dir: str | Path, **options: Any) -> WandbLogger:
    """A WandbLogger that never asks a question: offline, into `save_dir`, where `wandb login` was not run.

    The environment's WANDB_MODE decides, if it is set. An offline run is uploaded later with `wandb sync`.

    Raises:
        ModuleNotFoundError: wandb is not installed.
    """
    try:
        import wandb
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("logger=wandb needs wandb: pip install 'qat[loggers]', or use logger=csv.") from error
    os.environ.setdefault("WANDB_SILENT", "true")
    mode = os.environ.get("WANDB_MODE")
    offline = mode in ("offline", "dryrun") if mode else not _logged_in(wandb)
    if offline:
        options["mode"] = "offline"  # said to wandb itself: it has read its environment by now
    return WandbLogger(save_dir=str(save_dir), offline=offline, **options)


def finish(logger: Any, results: Results) -> None:
    """End a W&B run with the table of the report as its summary; nothing to do for other loggers."""
    if isinstance(logger, WandbLogger):
        run = logger.experiment
        run.summary.update({f"{row.name}/top1": row.top1 for row in results.rows})
        run.summary.update({"verdict": results.verdict.text})
        run.finish()


def _logged_in(wandb: Any) -> bool:
    try:
        return bool(wandb.login(prompt=False))
    except TypeError:  # older versions cannot be told not to ask
        return wandb.api.api_key is not None
