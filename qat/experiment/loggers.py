"""The logger of a run: its names, its configuration, and Weights & Biases, offline unless the user is logged in."""

from __future__ import annotations

import difflib
import inspect
import os
import warnings
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import TensorBoardLogger, WandbLogger
from omegaconf import DictConfig, OmegaConf

from qat.experiment import build

WANDB, MLFLOW = "qat.experiment.loggers.wandb_logger", "qat.experiment.loggers.mlflow_logger"
SECONDS = 30
"""How long a run waits for W&B's server before it goes on offline."""


def check_logger(config: DictConfig) -> None:
    """Check, before anything is trained, that the package of the logger is installed and has the options.

    Raises:
        ValueError: it is not, or it has no such option.
    """
    if str(config.logger.get("_target_")).endswith(".TensorBoardLogger") and find_spec("tensorboard") is not None:
        from torch.utils.tensorboard import SummaryWriter  # Lightning hands it what it does not know, when it logs

        known = {*inspect.signature(TensorBoardLogger).parameters, *inspect.signature(SummaryWriter).parameters}
        for key in sorted(str(key) for key in config.logger.keys() - known - {"_target_", "_partial_"}):
            close = difflib.get_close_matches(key, known, n=1)
            hint = (
                f"did you mean logger.{close[0]}?"
                if close
                else f"TensorBoard has the options {', '.join(sorted(known))}."
            )
            raise ValueError(f"unknown key logger.{key}; {hint}")
    if config.logger.get("_target_") == MLFLOW and find_spec("mlflow") is None:
        raise ValueError("logger=mlflow needs MLflow: pip install 'qat-lightning[mlflow]'.")


def make_logger(config: DictConfig, folder: Path, recipe: str) -> Any:
    """The logger that the configuration describes, told the whole configuration.

    W&B and MLflow show runs of all folders, so these get names: the recipe as group, the recipe and the seed as name, and what
    was chosen as tags, unless the configuration has others.
    """
    given: dict[str, Any] = {"save_dir": str(folder)}
    target = config.logger.get("_target_")
    if target == WANDB:
        names = {"group": recipe, "name": f"{recipe}, seed {config.seed}", "tags": _tags(config, recipe)}
        given |= {key: value for key, value in names.items() if config.logger.get(key) is None}
    if target == MLFLOW and config.logger.get("run_name") is None:
        given["run_name"] = f"{recipe}, seed {config.seed}"
    logger = build.part({k: v for k, v in config.logger.items() if v is not None}, "logger", **given)
    logger.log_hyperparams(OmegaConf.to_container(config, resolve=True))
    return logger


def wandb_logger(save_dir: str | Path, **options: Any) -> WandbLogger:
    """A WandbLogger that never prompts: without `wandb login`, it works offline and writes into `save_dir`.

    The environment variable WANDB_MODE decides, if it is set. `wandb sync` uploads an offline run later. A server that does not
    answer is a warning, and the run goes on offline.
    """
    import wandb  # late: a second that only a run with this logger should wait

    os.environ.setdefault("WANDB_SILENT", "true")
    mode = os.environ.get("WANDB_MODE")
    offline = mode in ("offline", "dryrun") if mode else not _logged_in(wandb)
    if not offline:
        options.setdefault("settings", wandb.Settings(init_timeout=SECONDS))
        logger = WandbLogger(save_dir=str(save_dir), offline=False, **options)
        if _answers(logger, wandb):
            return logger
    options["mode"] = "offline"  # wandb has read its environment by now, so it is told directly
    return WandbLogger(save_dir=str(save_dir), offline=True, **options)


def mlflow_logger(save_dir: str | Path, tracking_uri: str | None = None, **options: Any) -> Any:
    """An MLFlowLogger; without `tracking_uri`, or MLFLOW_TRACKING_URI, it writes into mlflow.db in `save_dir`.

    Raises:
        ValueError: MLflow is not installed.
    """
    from lightning.pytorch.loggers import MLFlowLogger

    uri = tracking_uri or os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{Path(save_dir).absolute()}/mlflow.db"
    options.setdefault(
        "artifact_location", f"file:{Path(save_dir).absolute()}/mlflow" if uri.startswith("sqlite") else None
    )
    try:
        return MLFlowLogger(tracking_uri=uri, **options)
    except ModuleNotFoundError:
        raise ValueError("logger=mlflow needs MLflow: pip install 'qat-lightning[mlflow]'.") from None


def finish(logger: Any) -> None:
    """End a W&B run, also one that failed, so that the next job of a sweep has its own. Other loggers need nothing."""
    if isinstance(logger, WandbLogger):
        logger.experiment.finish()


def _tags(config: DictConfig, recipe: str) -> list[str]:
    """What was chosen, in a word each."""
    names = (config.data, config.model, config.policy.weight.quantizer)
    targets = [str(node.get("_target_", "")) if OmegaConf.is_config(node) else str(node) for node in names]
    return list(
        dict.fromkeys(filter(None, [recipe, str(config.policy.preset), *(t.rpartition(".")[2] for t in targets)]))
    )


def _logged_in(wandb: Any) -> bool:
    try:
        return bool(wandb.login(prompt=False))
    except TypeError:  # older versions have no such option
        return wandb.api.api_key is not None


def _answers(logger: WandbLogger, wandb: Any) -> bool:
    """Whether the server begins the run; a warning says why not."""
    try:
        _ = logger.experiment
    except (wandb.errors.CommError, wandb.errors.UsageError) as error:
        reason = " ".join(str(error).split())
        warnings.warn(
            f"W&B does not answer ({reason}): this run is logged offline; wandb sync uploads it.", stacklevel=3
        )
        return False
    return True
