"""Checks of a run beyond the schema of its configuration: unwise values, its images, the run that it resumes."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import BatchSizeFinder, EarlyStopping, LearningRateFinder
from omegaconf import DictConfig, OmegaConf

from qat.experiment.configuration import CONFIG_NAME, CONFIGS
from qat.experiment.recorded_configuration import read_configuration
from qat.experiment.schema.budget import LIMITS
from qat.experiment.schema.configuration import METRICS
from qat.training.callbacks import ExportONNX, OscillationControl, Pruning, PTQBaselines, Report

KEYS_THAT_DETERMINE_THE_FIT = (
    "seed",
    "batch_size",
    "calibration_images",
    "label_smoothing",
    "distillation",
    "budget",
    "pruning",
    "progressive",
    "freeze",
    "float",
    "model",
    "data",
    "optim",
    "policy",
    "oscillation",
    "callbacks.qat",
    "trainer.precision",
    "trainer.accumulate_grad_batches",
    "trainer.gradient_clip_val",
)
"""A resumed run must have the same values for these keys as the interrupted one."""
EXCEPTIONS = (
    *("budget.points", "distillation.teacher.checkpoint", "model.checkpoint", "data.root", "optim.schedule"),
    "callbacks.qat.compile",
)
"""Keys below them that may differ: where files are, how the learning rate continues, how the same numbers are computed."""
LESS_IS_BETTER = ("train/loss", "val/loss", "val/calibration_error")
"""The METRICS whose lowest value is the best; of `step` and `epoch` it is the highest, the newest."""
MADE_BY_THE_RUN: Mapping[type[L.Callback], str] = {
    Report: "nothing: every run has a report",
    ExportONNX: "export=NAME",
    PTQBaselines: "ptq=NAME",
    Pruning: "pruning.sparsity=SHARE",
    OscillationControl: "oscillation=NAME",
}
"""Callbacks that a run has by other keys, and those keys."""
COUNTS_ONLY_WITH = {
    "pruning": ("sparsity", "pattern", "channels"),
    "budget": LIMITS,
    "distillation": ("weight", "features"),
}
"""Sections that do nothing unless one of these keys is set."""
HIGH_LEARNING_RATE_FOR_ADAM = 0.005
"""Recipes set a learning rate for their own optimizer, SGD; it stays when another optimizer is chosen."""
HIGH_DECAY = 1e-3
"""A step that takes more than this share of every weight takes more than training gives back."""
USUAL_DECAY = 1e-4


def check_images(config: DictConfig, images: int) -> None:
    """Check that there are enough training images to calibrate with.

    Args:
        config: the configuration.
        images: in the training split, once it is limited.

    Raises:
        ValueError: there are not.
    """
    if config.calibration_images <= images:
        return
    limit = config.data.get("limit_train")
    cause = f"data.limit_train={limit} leaves" if limit is not None else "there are"
    raise ValueError(
        f"calibration_images={config.calibration_images} is not possible, {cause} {images} training images: write "
        f"calibration_images={images} or fewer{', or a higher limit' if limit is not None else ''}."
    )


def check_lengths(config: DictConfig, train: int, val: int) -> None:
    """Check that the limits of the Trainer leave at least one batch of an epoch, and that it is validated.

    Args:
        config: the configuration.
        train: training batches of an epoch in each process.
        val: validation batches; 0: there are none.

    Raises:
        ValueError: it is not; Lightning would say so after the float training.
    """
    for key, batches in (("limit_train_batches", train), ("limit_val_batches", val)):
        share = config.trainer.get(key)
        if isinstance(share, float) and batches and int(share * batches) < 1:
            raise ValueError(
                f"trainer.{key}={share} is less than one of {batches} batches: write a number of them, 1 to {batches}, "
                "or leave it out."
            )
    used = _batches_of_epoch(config, train)
    interval = config.trainer.get("val_check_interval")
    if isinstance(interval, int) and interval > used and config.trainer.get("check_val_every_n_epoch", 1) is not None:
        raise ValueError(
            f"trainer.val_check_interval={interval} is more than the {used} batches of an epoch: write 1 to {used}, or "
            "trainer.check_val_every_n_epoch=N."
        )


def steps_of_fit(config: DictConfig, train: int) -> float:
    """The optimizer steps of QAT; infinite if time alone limits it.

    Args:
        config: the configuration.
        train: training batches of an epoch in each process.
    """
    options = config.trainer
    of_epoch = math.ceil(_batches_of_epoch(config, train) / (options.get("accumulate_grad_batches") or 1))
    epochs, steps = options.get("max_epochs"), options.get("max_steps")
    limits = [steps] if steps is not None and steps > 0 else []
    limits += [epochs * of_epoch] if epochs is not None and epochs > 0 else []
    return min(limits, default=math.inf)


def _batches_of_epoch(config: DictConfig, train: int) -> int:
    """The batches that `limit_train_batches` leaves of `train`."""
    limit = config.trainer.get("limit_train_batches")
    return train if limit is None else int(limit * train) if isinstance(limit, float) else min(limit, train)


def check_callbacks(callbacks: Mapping[str, Any]) -> None:
    """Check the objects that the configuration describes under `callbacks`, and that the metrics they watch are logged.

    Args:
        callbacks: name -> object.

    Raises:
        ValueError: one is not a callback, is made by the run itself, or watches a metric that is not logged.
    """
    kinds: dict[type[Any], str] = {}
    logs = [c for c in callbacks.values() if not type(c).__module__.startswith(("qat.", "lightning."))]  # anything
    for name, callback in callbacks.items():
        key = f"callbacks.{name}"
        if not isinstance(callback, L.Callback):
            raise ValueError(
                f"{key} makes a {type(callback).__name__}: write the _target_ of a callback, or {key}=null."
            )
        if isinstance(callback, BatchSizeFinder | LearningRateFinder):
            raise ValueError(
                f"{key} is a {type(callback).__name__}, which changes what the configuration says: leave it out, and write a "
                "sweep over optim.lr or batch_size."
            )
        if type(callback) in MADE_BY_THE_RUN:
            raise ValueError(
                f"{key} is a {type(callback).__name__}, which the run makes itself: leave it out, and write "
                f"{MADE_BY_THE_RUN[type(callback)]}."
            )
        if (first := kinds.setdefault(type(callback), key)) != key and type(callback).__module__.startswith("qat."):
            raise ValueError(f"{key} is a second {type(callback).__name__}, beside {first}: change that one.")
        monitor = getattr(callback, "monitor", None)
        if monitor not in (None, *METRICS) and not logs:
            raise ValueError(f"{key}.monitor={monitor!r} is not logged: write one of {', '.join(METRICS)}.")
        best = "min" if monitor in LESS_IS_BETTER else "max"
        mode = getattr(callback, "mode", best)
        if monitor in METRICS and mode != best:
            better = "less" if best == "min" else "more"
            raise ValueError(
                f"{key}.mode={mode} takes the worst for the best, because of {monitor} {better} is better: write "
                f"{key}.mode={best}."
            )
        if isinstance(callback, EarlyStopping) and callback.patience < 0:
            raise ValueError(
                f"{key}.patience={callback.patience} is not possible: write how many validations it waits."
            )


def _warn_of_values_without_effect(config: DictConfig) -> None:
    """Warn of values that were changed in a section that is switched off."""
    defaults: Any = OmegaConf.load(CONFIGS / f"{CONFIG_NAME}.yaml")
    for section, switches in COUNTS_ONLY_WITH.items():
        if any(config[section][switch] for switch in switches):
            continue
        for key, value in config[section].items():
            if key not in switches and value != defaults[section][key]:
                warnings.warn(
                    f"{section}.{key}={value} counts for nothing without one of "
                    f"{', '.join(f'{section}.{switch}' for switch in switches)}.",
                    stacklevel=3,
                )


def warn_of_unwise_values(config: DictConfig) -> None:
    """Warn of values that are possible but rarely sensible."""
    _warn_of_values_without_effect(config)
    if config.distillation.weight and config.distillation.temperature > 1:
        warnings.warn(
            f"distillation.temperature={config.distillation.temperature}: above 1 small networks were seen to collapse "
            "(ResNet-20, in Distiller's examples, at 5); 1.0 is the safe choice.",
            stacklevel=3,
        )
    for key in ("optim", "float.optim"):
        name = str(OmegaConf.select(config, f"{key}.optimizer._target_")).rpartition(".")[2]
        lr = OmegaConf.select(config, f"{key}.lr")
        if "adam" in name.lower() and lr > HIGH_LEARNING_RATE_FOR_ADAM:
            warnings.warn(
                f"{key}.lr={lr} is a rate for SGD; with {name} training is likely to collapse: write {key}.lr=0.001.",
                stacklevel=3,
            )
        decay = OmegaConf.select(config, f"{key}.weight_decay") or 0.0
        if lr * decay > HIGH_DECAY:
            instead = "lr=0.1" if lr * USUAL_DECAY > HIGH_DECAY else f"weight_decay={USUAL_DECAY}"
            warnings.warn(
                f"{key}.weight_decay={decay} with {key}.lr={lr} takes {lr * decay:.2g} of every weight in each step, so that "
                f"training is likely to collapse: write {key}.{instead}.",
                stacklevel=3,
            )


def check_same_run(config: DictConfig, folder: Path) -> None:
    """Check that a resumed run computes the same fit as the interrupted one, whose folder is given. It may be longer.

    Without that run's config.yaml, nothing is checked.

    Raises:
        ValueError: a value differs; the message names its key and both values.
    """
    if not (folder / "config.yaml").is_file():
        return
    interrupted = _fit_settings(read_configuration(folder / "config.yaml"))
    resumed = _fit_settings(config)
    for key in sorted({*interrupted, *resumed}):
        before, now = interrupted.get(key), resumed.get(key)
        if before != now:
            raise ValueError(
                f"resume={config.resume}: that run had {key}={before}, this one has {key}={now}: restore the old value, or "
                "start a new run without resume."
            )


def _fit_settings(config: Any) -> dict[str, Any]:
    """The settings that determine a fit: dotted key -> plain value. Keys that are null are left out."""
    settings: dict[str, Any] = {}

    def collect(key: str, value: Any) -> None:
        if key in EXCEPTIONS:
            return
        if isinstance(value, dict):
            for name, inner in value.items():
                collect(f"{key}.{name}", inner)
        elif value is not None:
            settings[key] = value

    for key in KEYS_THAT_DETERMINE_THE_FIT:
        value = OmegaConf.select(config, key)
        collect(key, OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value)
    return settings
