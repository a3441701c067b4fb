"""All keys of a run's configuration, from the top. Read it as their documentation; docs/configuration.md is made of it."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import model_validator

from qat.experiment.schema.budget import Budget
from qat.experiment.schema.nodes import OneOf, wrong
from qat.experiment.schema.outputs import AnyCallback, AnyExport, AnyLogger, ModelCheckpoint
from qat.experiment.schema.post_training import AnyPtq
from qat.experiment.schema.pruning import Pruning
from qat.experiment.schema.quantization import AnyObserver, AnyOscillation, AnyQuantizer, Policy, Stages
from qat.experiment.schema.sources import Data, ImageFolder, KnownData, Network, ResNetCifar, TorchvisionModel
from qat.experiment.schema.trainer import Trainer
from qat.experiment.schema.training import Distillation, FloatTraining, Freeze, Optim
from qat.experiment.schema.values import (
    BatchSize,
    Count,
    Images,
    Objective,
    Objectives,
    Section,
    Seed,
    ShareBelowOne,
    Text,
    Workers,
)

METRICS = (
    *("train/loss", "val/loss", "val/top1", "val/top5", "val/calibration_error"),
    *("step", "epoch"),
)
"""What a checkpoint can be chosen by."""
IN_RUN_FOLDER = ("checkpoint", "recent")
"""Callbacks whose folder the run chooses."""


class Configuration(Section):
    """The top of the configuration of a run."""

    seed: Seed
    """seeds everything that is random: initial weights, the order of the images, augmentation"""
    batch_size: BatchSize
    """images in a training step, in each process"""
    eval_batch_size: BatchSize
    """images in a validation or test batch"""
    num_workers: Workers | None
    """processes that load images; null: 0 for images in memory, else one per core (at most 8)"""
    calibration_images: Images
    """how many training images calibrate the first ranges; they are never augmented"""
    validations: Count
    """how many validations a run with trainer.max_steps has; a run counted in epochs is validated after each epoch"""
    label_smoothing: ShareBelowOne
    """label smoothing of the training loss in QAT"""
    compile: bool
    """train with torch.compile: it compiles for minutes, then steps are faster; for long runs"""
    resume: Text | None
    """folder of an interrupted run of this recipe, or one of its checkpoints; it continues as if it had never stopped"""
    objective: Objective | Objectives
    """what a sweep optimizes, measured on the validation images; a list asks for the Pareto front"""
    compare_with: list[Text]
    """folders of finished runs on the same data: their files are measured, and the report says whether this run beats them"""
    debug: bool
    """show the traceback of an error"""
    data: Annotated[Any, OneOf((Data, KnownData, ImageFolder))]
    """the images: which data set, how it is split, and its augmentation"""
    model: Annotated[Any, OneOf((Network, ResNetCifar, TorchvisionModel), Network)]
    """the network and its float weights"""
    float: FloatTraining
    """how the float network is trained if it has no weights yet"""
    optim: Optim
    """optimizer and learning rate of QAT"""
    distillation: Distillation
    """what the quantized network learns from a teacher"""
    freeze: Freeze
    """what is frozen late in the run"""
    budget: Budget
    """a budget from which the bits of every layer are chosen before QAT"""
    pruning: Pruning
    """weights and channels that are pruned"""
    progressive: Stages | None
    """the bits of each stage of training, down to the fewest bits of the policy; null: the policy's bits throughout"""
    quantizer: AnyQuantizer
    """the quantizer of weights and activations, unless the policy names others"""
    observer: AnyObserver
    """the observer that finds the first ranges of weights and activations, unless the policy names others"""
    policy: Policy
    """what is quantized, and to how many bits"""
    oscillation: AnyOscillation
    """whether weights that oscillate between two codes are counted, dampened or frozen"""
    ptq: AnyPtq
    """the post-training quantization that QAT is compared with"""
    trainer: Annotated[Any, OneOf((Trainer,), Trainer)]
    """arguments of Lightning's Trainer"""
    callbacks: dict[str, AnyCallback]
    """Lightning callbacks by name; add your own with +callbacks.NAME={_target_: ...}, remove one with ~callbacks.NAME"""
    logger: AnyLogger
    """the logger that receives the metrics"""
    export: AnyExport
    """the files that are written and verified"""

    @model_validator(mode="after")
    def _check_callbacks(self) -> Configuration:
        if self.callbacks.get("qat") is None:
            raise wrong("callbacks.qat is missing, and nothing would be quantized: leave it as it is.")
        own = [name for name, node in self.callbacks.items() if node is not None and not _is_ours(node)]
        for name, node in self.callbacks.items():
            if name in IN_RUN_FOLDER and node is not None and "dirpath" in node.arguments():
                raise wrong("{key} is set by the run: write hydra.run.dir=FOLDER.", "callbacks", name, "dirpath")
            if isinstance(node, ModelCheckpoint) and node.monitor not in (None, *METRICS) and not own:
                known = ", ".join(METRICS)
                raise wrong(f"{{key}}={{value}} is not logged: write one of {known}.", "callbacks", name, "monitor")
        return self


def _is_ours(node: Any) -> bool:
    return str(node.target_).startswith(("qat.", "lightning."))
