"""Values at the top of the configuration, checked before anything is opened."""

from __future__ import annotations

import math
import warnings
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

WHOLE = {
    "seed": 0,
    "batch_size": 1,
    "eval_batch_size": 1,
    "calibration_images": 1,
    "validations": 1,
    "float.epochs": 0,
}
"""Key -> smallest value."""
SHARES = ("label_smoothing", "float.label_smoothing", "distillation.weight")
POSITIVE = ("distillation.temperature", "optim.lr", "float.optim.lr")
DECAYS = ("optim.weight_decay", "float.optim.weight_decay")
DECIDES = (
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
"""What a resumed run must have in common with the one that it goes on with."""
FREE = ("model.checkpoint", "data.root", "optim.schedule", "callbacks.qat.compile")
"""What may differ all the same: where files are, how the rate goes on, how the same numbers are calculated."""
HIGH_FOR_ADAM = 0.005
"""Recipes set a learning rate for their own optimizer, SGD; it stays when another one is chosen."""
OPTIONAL_WHOLE = {"num_workers": 0, "trainer.max_epochs": -1, "trainer.max_steps": -1}


def check_values(config: DictConfig) -> None:
    """Each value has the right type and range. What is possible and seldom wise is warned of.

    Raises:
        ValueError: one has not; the message names the key.
    """
    for key, smallest in {**WHOLE, **OPTIONAL_WHOLE}.items():
        value: Any = OmegaConf.select(config, key)
        if value is None and key in OPTIONAL_WHOLE:
            continue
        if not isinstance(value, int) or isinstance(value, bool) or value < smallest:
            raise ValueError(f"{key}={value!r} is not possible: write a whole number, {smallest} or more.")
    for key in SHARES:
        value = OmegaConf.select(config, key)
        if not _is_number(value) or not 0 <= value <= 1:
            raise ValueError(f"{key}={value!r} is not possible: write a number from 0 to 1.")
    for key in POSITIVE:
        value = OmegaConf.select(config, key)
        if not _is_number(value) or not 0 < value < math.inf:
            raise ValueError(f"{key}={value!r} is not possible: write a positive number.")
    for key in DECAYS:
        value = OmegaConf.select(config, key)
        if value is not None and (not _is_number(value) or not 0 <= value < math.inf):
            raise ValueError(f"{key}={value!r} is not possible: write a number, 0 or more.")
    if config.distillation.weight and config.distillation.temperature > 1:
        warnings.warn(
            f"distillation.temperature={config.distillation.temperature}: above 1 small networks were seen to collapse "
            "(ResNet-20, in Distiller's examples, at 5); 1.0 is the safe choice.",
            stacklevel=2,
        )
    for key in ("optim", "float.optim"):
        name = str(OmegaConf.select(config, f"{key}.optimizer._target_")).rpartition(".")[2]
        lr = OmegaConf.select(config, f"{key}.lr")
        if "adam" in name.lower() and lr > HIGH_FOR_ADAM:
            warnings.warn(
                f"{key}.lr={lr} is a rate for SGD; with {name} training is likely to collapse: write {key}.lr=0.001.",
                stacklevel=2,
            )
    steps, epochs = config.trainer.get("max_steps", -1), config.trainer.get("max_epochs")
    if steps == 0:
        raise ValueError("trainer.max_steps=0 trains nothing: write 1 or more, or -1 for trainer.max_epochs alone.")
    if (steps is None or steps < 1) and (epochs is None or epochs < 1) and not config.trainer.get("fast_dev_run"):
        raise ValueError("the run has no length: set trainer.max_epochs or trainer.max_steps to 1 or more.")
    scales: Any = OmegaConf.select(config, "callbacks.qat.quantizer_optimizer")
    if isinstance(scales, DictConfig) and not scales.get("_partial_"):
        raise ValueError(
            "callbacks.qat.quantizer_optimizer has no parameters yet: add _partial_: true, as in {_target_: torch.optim.Adam, "
            "_partial_: true, lr: 1e-3}."
        )


def check_folder(folder: Path) -> None:
    """Nothing that an earlier run wrote is overwritten.

    Raises:
        ValueError: the folder holds something of a fit.
    """
    there = [name for name in ("results.json", "metrics", "checkpoints") if (folder / name).exists()]
    if there:
        raise ValueError(
            f"hydra.run.dir={folder} holds {' and '.join(there)} of another run, which would be overwritten: write the name of "
            "a new folder, also where resume= goes on with that run, or leave hydra.run.dir out."
        )


def check_same_run(config: DictConfig, checkpoint: Path) -> None:
    """What decides a fit is what it was in the run that wrote this checkpoint; a run may go on longer than it was meant to.

    Raises:
        ValueError: something else differs; the message names the key and both values.
    """
    folder = checkpoint.parent.parent if checkpoint.parent.name == "checkpoints" else checkpoint.parent
    if not (folder / "config.yaml").is_file():
        return  # nobody knows
    theirs, ours = (_deciding(c) for c in (OmegaConf.load(folder / "config.yaml"), config))
    for key in sorted({*theirs, *ours}):
        before, now = theirs.get(key), ours.get(key)
        if before != now:
            raise ValueError(
                f"resume={config.resume}: that run had {key}={before}, this one has {key}={now}: write it as it was, or start "
                "a run of its own without resume."
            )


def _deciding(config: Any) -> dict[str, Any]:
    """What a fit depends on: dotted key -> plain value."""
    found: dict[str, Any] = {}

    def collect(key: str, value: Any) -> None:
        if key in FREE:
            return
        if isinstance(value, dict):
            for name, inner in value.items():
                collect(f"{key}.{name}", inner)
        elif value is not None:
            found[key] = value

    for key in DECIDES:
        value = OmegaConf.select(config, key)
        collect(key, OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value)
    return found


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
