"""Weights & Biases, offline unless the user is logged in."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import WandbLogger

from qat.report import Results


def wandb_logger(save_dir: str | Path, **options: Any) -> WandbLogger:
    """A WandbLogger that never prompts: without `wandb login`, it works offline and writes into `save_dir`.

    The environment variable WANDB_MODE decides, if it is set. `wandb sync` uploads an offline run later.
    """
    import wandb  # late: a second that only a run with this logger should wait

    os.environ.setdefault("WANDB_SILENT", "true")
    mode = os.environ.get("WANDB_MODE")
    offline = mode in ("offline", "dryrun") if mode else not _logged_in(wandb)
    if offline:
        options["mode"] = "offline"  # wandb has read its environment by now, so it is told directly
    return WandbLogger(save_dir=str(save_dir), offline=offline, **options)


def finish(logger: Any, results: Results) -> None:
    """End a W&B run with the table of the report as its summary. Other loggers need nothing."""
    if isinstance(logger, WandbLogger):
        run = logger.experiment
        name = "top1" if results.metric.percent else results.metric.name
        run.summary.update({f"{row.name}/{name}": row.value for row in results.rows})
        run.summary.update({"verdict": results.verdict.text})
        run.finish()


def _logged_in(wandb: Any) -> bool:
    try:
        return bool(wandb.login(prompt=False))
    except TypeError:  # older versions have no such option
        return wandb.api.api_key is not None
