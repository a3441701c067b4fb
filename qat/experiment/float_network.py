"""The float network that a run starts from: read from a checkpoint, from torchvision, or trained once and cached."""

from __future__ import annotations

import copy
import hashlib
import json
import logging
import time
from importlib import metadata
from pathlib import Path
from typing import Any

import lightning as L
import torch
import torchvision.models
from omegaconf import DictConfig, OmegaConf
from torch import nn

from qat.data import ImageData
from qat.experiment.build import classifier, datamodule, part, trainer
from qat.experiment.console import Progress
from qat.experiment.training_images import digest_images
from qat.files import cache_folder
from qat.models import check_model, load_weights, save_weights
from qat.report.text_of_numbers import format_count
from qat.training.comparison.divergence import divergence
from qat.training.lightning.inputs import first_tensor
from qat.training.lightning.lost_training import DivergedError, LostTraining
from qat.version import version

log = logging.getLogger(__name__)

TORCHVISION = "qat.models.torchvision_model"
"""The `_target_` whose `weights` are torchvision's, with a number of classes that is known."""
RATE = "float.optim.lr"
"""The learning rate of the float training."""
MUCH_ABOVE_CHANCE = 1.5
"""Times the accuracy of chance below which a network whose weights grew tenfold counts as diverged."""


def build(model: DictConfig, data: ImageData) -> nn.Module:
    """The network of the configuration for this data, with random weights or torchvision's.

    Raises:
        ValueError: the network does not fit the data.
        FileNotFoundError: torchvision's weights cannot be loaded.
    """
    options = {key: value for key, value in model.items() if key != "checkpoint"}
    network: nn.Module = part(options, "model", **_shape(data))
    check_model(network, data.image_shape, data.num_classes)
    return network


def built_from(model: DictConfig, data: ImageData) -> dict[str, Any]:
    """The `_target_` and options that rebuild the network without its weights, for checkpoints."""
    options: Any = OmegaConf.to_container(model, resolve=True)
    unweighted = {key: None if key == "weights" else value for key, value in options.items() if key != "checkpoint"}
    return {**unweighted, **_shape(data)}


def _shape(data: ImageData) -> dict[str, int]:
    return {"num_classes": data.num_classes, "in_channels": data.image_shape[0]}


def check_source(config: DictConfig, data: ImageData) -> None:
    """Check, before anything is trained, that the float weights have a source.

    Raises:
        ValueError: nothing would train the network, or its new head.
        FileNotFoundError: the checkpoint does not exist.
    """
    epochs = config.float.epochs
    if config.model.checkpoint is not None:
        path = Path(config.model.checkpoint).expanduser()
        if not path.is_file():
            what = "is a folder" if path.is_dir() else "does not exist"
            raise FileNotFoundError(
                f"model.checkpoint={config.model.checkpoint} {what}: give a .safetensors or .ckpt file, or leave it "
                "out and set float.epochs to train the float network first."
            )
        return
    weights = config.model.get("weights")
    if epochs == 0 and weights is None:
        raise ValueError(
            "there is no float network: set model.checkpoint=PATH, or float.epochs to train one first, for example "
            "float.epochs=20."
        )
    if epochs > 0 or config.model.get("_target_") != TORCHVISION:
        return
    if (known := _classes_of(config.model.name, weights)) != data.num_classes:
        raise ValueError(
            f"{config.model.name}'s weights have {known} classes, the data {data.num_classes}, so its head is new: set "
            "float.epochs to train it first, for example float.epochs=3."
        )


def load_or_train(network: nn.Module, config: DictConfig, data: ImageData, folder: Path) -> str:
    """Load or train the weights of `network`, in place.

    Trained weights are cached as float/<fingerprint>.safetensors in the folder of the environment variable QAT_CACHE_DIR
    (default ~/.cache/qat).

    Returns:
        Where the weights come from, for the log.
    """
    if config.model.checkpoint is not None:
        _load_checkpoint(network, config.model.checkpoint)
        return f"from {config.model.checkpoint}"
    if config.float.epochs == 0:
        owner = "torchvision's" if config.model.get("_target_") == TORCHVISION else "the model's own"
        return f"{owner} {config.model.weights}"
    path = cache_folder() / "float" / f"{fingerprint(config, data)}.safetensors"
    if path.is_file():
        try:
            load_weights(network, path, needs_checksum=True)
        except (ValueError, OSError) as error:
            log.warning("the cached float network is unusable and is trained again: %s", error)
        else:
            return f"trained before, cached in {path}"
    start = time.perf_counter()
    top1 = _train(network, config, data, folder)
    try:
        save_weights(network, path, {"val_top1": "" if top1 is None else f"{top1:.6f}"})
    except OSError as error:
        log.warning("the float network is not cached in %s (%s): set QAT_CACHE_DIR to a writable folder.", path, error)
    accuracy = "" if top1 is None else f", validation accuracy {100 * top1:.2f} %"
    length = (
        format_count(config.float.epochs, "epoch")
        if config.float.max_steps is None
        else format_count(config.float.max_steps, "step")
    )
    return f"trained for {length} in {time.perf_counter() - start:.0f} s{accuracy}"


def _load_checkpoint(network: nn.Module, path: str) -> None:
    """The weights of model.checkpoint, in place."""
    try:
        load_weights(network, path)
    except ValueError as error:
        if "_quantizer." not in str(error):
            raise
        raise ValueError(
            f"model.checkpoint={path} holds a network with quantizers, and this key takes float weights: give those that QAT "
            "started from, or write resume=PATH to continue an interrupted run."
        ) from error
    for name, tensor in network.state_dict().items():
        if not tensor.isfinite().all():
            raise ValueError(f"model.checkpoint={path} holds NaN or infinity in {name!r}: give another checkpoint.")


def fingerprint(config: DictConfig, data: ImageData) -> str:
    """A hash of everything that determines the float weights: model, training settings, seed, threads, versions, images.

    Policy, QAT settings and test images do not change it.
    """
    float_settings: Any = OmegaConf.to_container(config.float, resolve=True)
    settings = {
        "model": OmegaConf.to_container(config.model, resolve=True),
        "float": {key: value for key, value in float_settings.items() if key != "max_steps" or value is not None},
        "seed": config.seed,
        "threads": torch.get_num_threads(),  # sums are rounded in another order
        "batch": [config.batch_size, config.trainer.get("precision"), config.trainer.get("accelerator")],
        "transform": repr(data.batch_transform()),
        "normalisation": [data.mean, data.std],
        "versions": [version(), metadata.version("torch")],
    }
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    digest_images(digest, data.train)
    return digest.hexdigest()[:24]


def _train(network: nn.Module, config: DictConfig, data: ImageData, folder: Path) -> float | None:
    """Train `network` in place. Returns its accuracy on the validation images; None if there are none."""
    limit = "" if config.float.max_steps is None else f", at most {format_count(config.float.max_steps, 'step')}"
    log.info("training the float network first: %s%s", format_count(config.float.epochs, "epoch"), limit)
    L.seed_everything(config.seed, workers=True, verbose=False)
    module, before = classifier(network, config.float, data), copy.deepcopy(network)
    fitting = trainer(
        config,
        folder,
        callbacks=[
            LostTraining(first_tensor, lambda _: network, f"lower {RATE}, or clip gradients"),
            Progress("float"),
        ],
        logger=False,
        devices=1,  # also if several train afterwards: one float network for all
        num_nodes=1,
        strategy="auto",
        max_epochs=config.float.epochs,
        max_steps=-1 if config.float.max_steps is None else config.float.max_steps,
        check_val_every_n_epoch=1,
        val_check_interval=1.0,
        enable_checkpointing=False,
    )
    fitting.fit(module, datamodule=datamodule(config, data))
    value = fitting.callback_metrics.get("val/top1")
    module.cpu().float()  # as it comes from the cache, whatever the precision of the training
    top1 = None if value is None else float(value)
    lost = divergence(network, before, "before", RATE)
    if lost and (top1 is None or top1 < MUCH_ABOVE_CHANCE / data.num_classes):
        reached = "" if top1 is None else f" Its validation accuracy is {100 * top1:.2f} %."
        raise DivergedError(f"{lost.replace('The training', 'The float training')}{reached}")
    return top1


def _classes_of(name: str, weights: str) -> int:
    known = torchvision.models.get_model_weights(name)
    chosen = known.DEFAULT if weights == "DEFAULT" else known[weights]
    return len(chosen.meta["categories"])
