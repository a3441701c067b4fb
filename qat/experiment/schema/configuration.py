"""All keys of a run's configuration, from the top. Read it as their documentation; docs/configuration.md is made of it."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import model_validator

from qat.experiment.schema.budget import Budget
from qat.experiment.schema.nodes import OneOf, wrong
from qat.experiment.schema.outputs import AnyCallback, AnyExport, AnyLogger, ModelCheckpoint
from qat.experiment.schema.pruning import Pruning
from qat.experiment.schema.quantization import AnyObserver, AnyOscillation, AnyPtq, AnyQuantizer, Policy, Stages
from qat.experiment.schema.sources import Data, ImageFolder, KnownData, Network, ResNetCifar, TorchvisionModel
from qat.experiment.schema.training import Distillation, FloatTraining, Freeze, Optim, Trainer
from qat.experiment.schema.values import (
    BatchSize,
    Count,
    Images,
    Objective,
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


class Configuration(Section):
    """A run."""

    seed: Seed
    """of everything random"""
    batch_size: BatchSize
    """images of a training step, in each process"""
    eval_batch_size: BatchSize
    """images of a validation or test batch"""
    num_workers: Workers | None
    """loading processes; null: 0 for images in memory, else one per core (at most 8)"""
    calibration_images: Images
    """of the training split, never augmented"""
    validations: Count
    """in a run with trainer.max_steps; a run counted in epochs is validated after each epoch"""
    label_smoothing: ShareBelowOne
    """of the training loss"""
    compile: bool
    """torch.compile; it compiles for minutes, then steps are faster: for long runs"""
    resume: Text | None
    """folder of an interrupted run of this recipe, or one of its checkpoints: continues as if never interrupted"""
    objective: Objective | list[Objective]
    """what a sweep looks for, by the validation images; a list: the Pareto front"""
    compare_with: list[Text]
    """folders of finished runs on the same data: their files are measured, and the report says whether this one beats them"""
    debug: bool
    """show the traceback of errors"""
    data: Annotated[Any, OneOf((Data, KnownData, ImageFolder))]
    """images"""
    model: Annotated[Any, OneOf((Network, ResNetCifar, TorchvisionModel), Network)]
    """network"""
    float: FloatTraining
    """training of the float network"""
    optim: Optim
    """optimizer of QAT"""
    distillation: Distillation
    """from the float network"""
    freeze: Freeze
    """what stops late in a run"""
    budget: Budget
    """bits of every layer"""
    pruning: Pruning
    """zeros in weights"""
    progressive: Stages | None
    """bits of the stages, down to the fewest of the policy; null: the policy's throughout"""
    quantizer: AnyQuantizer
    """of weights and activations"""
    observer: AnyObserver
    """of weights and activations"""
    policy: Policy
    """where quantization goes"""
    oscillation: AnyOscillation
    """weights that swing between two codes"""
    ptq: AnyPtq
    """what QAT is compared with"""
    trainer: Annotated[Any, OneOf((Trainer,), Trainer)]
    """Lightning's Trainer"""
    callbacks: dict[str, AnyCallback]
    """Lightning's callbacks by name; add your own with +callbacks.NAME={_target_: ...}, remove one with ~callbacks.NAME"""
    logger: AnyLogger
    """metrics while it trains"""
    export: AnyExport
    """the file"""

    @model_validator(mode="after")
    def _check_callbacks(self) -> Configuration:
        if self.callbacks.get("qat") is None:
            raise wrong("callbacks.qat is missing, and nothing would be quantized: leave it as it is.")
        own = [name for name, node in self.callbacks.items() if node is not None and not _is_ours(node)]
        for name, node in self.callbacks.items():
            if isinstance(node, ModelCheckpoint) and node.monitor not in (None, *METRICS) and not own:
                known = ", ".join(METRICS)
                raise wrong(f"{{key}}={{value}} is not logged: write one of {known}.", "callbacks", name, "monitor")
        return self


def _is_ours(node: Any) -> bool:
    return str(node.target_).startswith(("qat.", "lightning."))
