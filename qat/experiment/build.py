"""Builds the parts of a run from its configuration."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L
import torch
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from lightning.pytorch.accelerators import CUDAAccelerator, MPSAccelerator
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from omegaconf import DictConfig, OmegaConf
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from qat.data import ImageData
from qat.experiment.datamodule import ImageDataModule
from qat.experiment.distillation import Distillation
from qat.experiment.feature_hints import FeatureHints
from qat.experiment.image_classifier import ImageClassifier
from qat.models import check_model, load_weights
from qat.training.lightning.progress_bar import EpochBar, has_terminal
from qat.transform import Policy, load_policy

ACCELERATORS = {"gpu": (CUDAAccelerator, MPSAccelerator), "cuda": (CUDAAccelerator,), "mps": (MPSAccelerator,)}
"""trainer.accelerator -> Lightning's kinds of it."""


def part(options: Any, name: str, /, **given: Any) -> Any:
    """The object that a part of the configuration describes by its `_target_`.

    Args:
        options: the part of the configuration.
        name: its key, for error messages.
        given: arguments that only the run knows.

    Raises:
        ValueError: an option is unknown or has the wrong type; the message names the part.
    """
    try:
        return instantiate(options, _partial_=True, _convert_="all")(**given)
    except ValueError as error:
        argument = re.match(r"(\w+)=", str(error))
        if argument is None or argument[1] not in options:
            raise
        raise ValueError(f"{name}.{error}") from error
    except TypeError as error:
        raise ValueError(f"{name} cannot be built: {error}.") from error
    except InstantiationException as error:
        if error.__cause__ is not None:
            raise
        said = str(error).splitlines()[0]  # by Hydra itself
        raise ValueError(f"{name} cannot be built: {said}") from error
    except MisconfigurationException as error:
        raise ValueError(f"{name} cannot be built: {str(error).rstrip('.!')}.") from error


def policy(config: DictConfig) -> Policy:
    """The policy of the configuration.

    Raises:
        ValueError: the policy is not valid.
    """
    content: Any = OmegaConf.to_container(config.policy, resolve=True)
    return load_policy(content)


def datamodule(config: DictConfig, data: ImageData) -> ImageDataModule:
    """The data in batches."""
    return ImageDataModule(data, config.batch_size, config.eval_batch_size, config.num_workers, config.seed)


def classifier(network: nn.Module, training: DictConfig, data: ImageData, **options: Any) -> ImageClassifier:
    """The LightningModule that trains `network`.

    Args:
        network: (N, C, H, W) -> logits (N, classes).
        training: a part of the configuration with `optim` and `label_smoothing`: all of it, or `float`.
        data: gives the number of classes.
        options: further arguments of ImageClassifier.

    Raises:
        ValueError: the optimizer or the schedule refuses its options.
    """
    optimizer = instantiate(training.optim.optimizer)
    schedule = instantiate(training.optim.schedule) if training.optim.schedule is not None else None
    try:  # a mistake shows now, not after the float training
        trial = optimizer([nn.Parameter(torch.zeros(1))])
        _check_class("optim.optimizer", trial, Optimizer, "torch.optim.SGD")
        if schedule is not None:
            of_steps = schedule(trial, 10)
            _check_class("optim.schedule", of_steps, LRScheduler, "qat.experiment.learning_rate.warmup_cosine")
    except Exception as error:  # whatever was named
        raise ValueError(f"optim cannot be built: {error}.") from error
    return ImageClassifier(
        network, data.num_classes, optimizer, schedule, label_smoothing=training.label_smoothing, **options
    )


def _check_class(key: str, made: Any, wanted: type, example: str) -> None:
    if not isinstance(made, wanted):
        raise TypeError(f"{key} makes something else (a {type(made).__name__}): write its _target_, as {example}")


def distillation(config: DictConfig, float_network: nn.Module, data: ImageData) -> Distillation | None:
    """A teacher made of the float network, or the one that the configuration names; None if nothing is taught.

    Raises:
        ValueError: the teacher has no weights or does not fit, or a layer of `features` does not exist.
        FileNotFoundError: the teacher's weights do not exist.
    """
    options = config.distillation
    if not options.weight and not options.features:
        return None
    teacher = float_network if options.teacher is None else _teacher(options.teacher, data)
    hints = None
    if options.features and config.compile:
        raise ValueError(
            "distillation.features with compile=true is not possible: compiled networks run no layer alone."
        )
    if options.features:
        hints = FeatureHints(float_network, teacher, list(options.features), torch.zeros(2, *data.image_shape))
    return Distillation(teacher, options.weight, options.temperature, hints, options.feature_weight)


def _teacher(options: DictConfig, data: ImageData) -> nn.Module:
    """A network of another architecture, with its weights."""
    described = {key: value for key, value in options.items() if key != "checkpoint"}
    shape = {"num_classes": data.num_classes, "in_channels": data.image_shape[0]}
    teacher: nn.Module = part(described, "distillation.teacher", **shape)
    check_model(teacher, data.image_shape, data.num_classes)
    path = options.get("checkpoint")
    if path is None and options.get("weights") is None:
        raise ValueError("distillation.teacher has no weights: write distillation.teacher.checkpoint=PATH.")
    if path is not None:
        if not Path(path).expanduser().is_file():
            raise FileNotFoundError(
                f"distillation.teacher.checkpoint={path} does not exist: give a .safetensors or .ckpt file."
            )
        load_weights(teacher, path)
    return teacher


def trainer(
    config: DictConfig, folder: Path, callbacks: Sequence[L.Callback], logger: Any, **changes: Any
) -> L.Trainer:
    """Lightning's Trainer.

    Args:
        config: its part `trainer` holds the Trainer's arguments.
        folder: where the Trainer writes.
        callbacks: Lightning callbacks.
        logger: a Lightning logger; False for none.
        changes: arguments that replace those of the configuration.
    """
    accelerator = config.trainer.get("accelerator")
    if accelerator in ACCELERATORS and not any(kind.is_available() for kind in ACCELERATORS[accelerator]):
        raise ValueError(
            f"trainer.accelerator={accelerator} is not in this machine: write trainer.accelerator=cpu, or auto."
        )
    bar = bool(config.trainer.get("enable_progress_bar", True)) and has_terminal()
    built: L.Trainer = part(
        config.trainer,
        "trainer",
        callbacks=[*callbacks, EpochBar()] if bar else list(callbacks),
        logger=logger,
        default_root_dir=str(folder),
        enable_progress_bar=bar,
        **changes,
    )
    return built


def validation_plan(config: DictConfig, batches: int) -> dict[str, Any]:
    """Arguments of the Trainer that validate a run counted in steps `config.validations` times, last after its last step.

    If the steps cannot be divided evenly, there are fewer validations. A run counted in epochs is validated after each
    epoch: no arguments.

    Args:
        config: the configuration of the run.
        batches: number of training batches in an epoch.
    """
    steps = config.trainer.get("max_steps", -1)
    if steps is None or steps < 1:
        return {}
    epochs = config.trainer.get("max_epochs")
    total = steps if epochs is None or epochs < 0 else min(steps, epochs * batches)
    validations = next(n for n in range(max(1, min(config.validations, total)), 0, -1) if total % n == 0)
    return {"check_val_every_n_epoch": None, "val_check_interval": total // validations}
