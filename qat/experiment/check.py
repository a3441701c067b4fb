"""Checks of the configuration that need neither data nor network: values, a resumed run."""

from __future__ import annotations

import math
import warnings
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from qat.experiment.recorded_configuration import read_configuration

WHOLE_NUMBERS = {
    "seed": 0,
    "batch_size": 1,
    "eval_batch_size": 1,
    "calibration_images": 1,
    "validations": 1,
    "float.epochs": 0,
}
"""Key -> smallest value."""
OPTIONAL_WHOLE_NUMBERS = {"num_workers": 0, "float.max_steps": 1, "trainer.max_epochs": -1, "trainer.max_steps": -1}
"""The same, for keys that may be null."""
FRACTIONS = ("label_smoothing", "float.label_smoothing", "distillation.weight")
POSITIVE_NUMBERS = ("distillation.temperature", "optim.lr", "float.optim.lr")
WEIGHT_DECAYS = ("optim.weight_decay", "float.optim.weight_decay")
KEYS_THAT_DETERMINE_THE_FIT = (
    "seed",
    "batch_size",
    "calibration_images",
    "label_smoothing",
    "distillation",
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
EXCEPTIONS = ("model.checkpoint", "data.root", "optim.schedule", "callbacks.qat.compile")
"""Keys below them that may differ: where files are, how the learning rate continues, how the same numbers are computed."""
HIGH_LEARNING_RATE_FOR_ADAM = 0.005
"""Recipes set a learning rate for their own optimizer, SGD; it stays when another optimizer is chosen."""


def check_values(config: DictConfig) -> None:
    """Check the type and range of each value, and warn of values that are possible but rarely sensible.

    Raises:
        ValueError: a value has the wrong type or is out of range; the message names its key.
    """
    _check_numbers(config)
    _check_length(config)
    optimizer: Any = OmegaConf.select(config, "callbacks.qat.quantizer_optimizer")
    if isinstance(optimizer, DictConfig) and not optimizer.get("_partial_"):
        raise ValueError(
            "callbacks.qat.quantizer_optimizer has no parameters yet: add _partial_: true, as in {_target_: torch.optim.Adam, "
            "_partial_: true, lr: 1e-3}."
        )
    _warn_of_unwise_values(config)


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


def _check_numbers(config: DictConfig) -> None:
    for key, smallest in {**WHOLE_NUMBERS, **OPTIONAL_WHOLE_NUMBERS}.items():
        value: Any = OmegaConf.select(config, key)
        if value is None and key in OPTIONAL_WHOLE_NUMBERS:
            continue
        if not isinstance(value, int) or isinstance(value, bool) or value < smallest:
            raise ValueError(f"{key}={value!r} is not possible: write a whole number, {smallest} or more.")
    for key in FRACTIONS:
        value = OmegaConf.select(config, key)
        if not _is_number(value) or not 0 <= value <= 1:
            raise ValueError(f"{key}={value!r} is not possible: write a number from 0 to 1.")
    for key in POSITIVE_NUMBERS:
        value = OmegaConf.select(config, key)
        if not _is_number(value) or not 0 < value < math.inf:
            raise ValueError(f"{key}={value!r} is not possible: write a positive number.")
    for key in WEIGHT_DECAYS:
        value = OmegaConf.select(config, key)
        if value is not None and (not _is_number(value) or not 0 <= value < math.inf):
            raise ValueError(f"{key}={value!r} is not possible: write a number, 0 or more.")


def _check_length(config: DictConfig) -> None:
    steps, epochs = config.trainer.get("max_steps", -1), config.trainer.get("max_epochs")
    if steps == 0:
        raise ValueError("trainer.max_steps=0 trains nothing: write 1 or more, or -1 for trainer.max_epochs alone.")
    if (steps is None or steps < 1) and (epochs is None or epochs < 1) and not config.trainer.get("fast_dev_run"):
        raise ValueError("the run has no length: set trainer.max_epochs or trainer.max_steps to 1 or more.")


def _warn_of_unwise_values(config: DictConfig) -> None:
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


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
