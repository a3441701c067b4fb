"""The LightningModule of a run: image classification."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from contextlib import nullcontext
from typing import Any

import lightning as L
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torchmetrics import MetricCollection
from torchmetrics.classification import MulticlassAccuracy, MulticlassCalibrationError

from qat.experiment.distillation import Distillation
from qat.training.lightning.rank_zero import copy_from_rank_zero
from qat.transform.policy_record import BUILT_FROM_KEY

Batch = tuple[Tensor, Tensor]
"""Network inputs float32 (N, C, H, W), labels int64 (N,)."""


class ImageClassifier(L.LightningModule):
    """Trains `network` with cross entropy. Logs train/loss and, for val and test, loss, top1, top5 and calibration_error.

    top5 is logged if there are more than five classes. calibration_error is the expected calibration error with 15 bins
    (Guo et al. 2017). All but the losses are fractions.

    Args:
        network: (N, C, H, W) -> logits (N, num_classes).
        num_classes: number of classes.
        optimizer: builds the optimizer from the parameters.
        scheduler: builds the schedule from the optimizer and the number of steps of the whole fit; it advances once a step.
            None: a constant learning rate.
        label_smoothing: in [0, 1); of the training loss only.
        distillation: adds a teacher to the training loss.
        built_from: `_target_` and options of the network, plain data, saved in checkpoints: `qat.load_checkpoint` rebuilds
            the network from them.

    Raises:
        ValueError: label_smoothing is out of range.
    """

    def __init__(
        self,
        network: nn.Module,
        num_classes: int,
        optimizer: Callable[[Iterable[nn.Parameter]], Optimizer],
        scheduler: Callable[[Optimizer, int], LRScheduler] | None = None,
        label_smoothing: float = 0.0,
        distillation: Distillation | None = None,
        built_from: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        if not 0 <= label_smoothing < 1:
            raise ValueError(f"label_smoothing={label_smoothing} is not in [0, 1): write for example 0.1.")
        self.network = network
        self.optimizer, self.scheduler = optimizer, scheduler
        self.label_smoothing = label_smoothing
        self.distillation = distillation
        self.hints = None if distillation is None else distillation.hints
        self.built_from = built_from
        metrics: dict[str, Any] = {
            "top1": MulticlassAccuracy(num_classes, average="micro"),
            "calibration_error": MulticlassCalibrationError(num_classes, n_bins=15, norm="l1"),
        }
        if num_classes > 5:
            metrics["top5"] = MulticlassAccuracy(num_classes, top_k=5, average="micro")
        self.val_metrics = MetricCollection(dict(metrics), prefix="val/", compute_groups=False)
        self.test_metrics = MetricCollection(
            {name: metric.clone() for name, metric in metrics.items()}, prefix="test/", compute_groups=False
        )

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.network(images)
        return logits

    def setup(self, stage: str) -> None:
        if self.distillation is not None:
            copy_from_rank_zero(self.trainer, self.distillation.teacher)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        images, labels = batch
        with nullcontext({}) if self.distillation is None else self.distillation.watch(self.network) as features:
            logits = self(images)
        loss = F.cross_entropy(logits, labels, label_smoothing=self.label_smoothing)
        if self.distillation is not None:
            loss = self.distillation(images, logits, loss, features)
        self.log(
            "train/loss", loss, on_step=False, on_epoch=True, prog_bar=True, batch_size=len(images), sync_dist=True
        )
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self._evaluate("val", self.val_metrics, batch)

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        self._evaluate("test", self.test_metrics, batch)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        if self.built_from is not None:
            checkpoint[BUILT_FROM_KEY] = dict(self.built_from)

    def configure_optimizers(self) -> Any:
        optimizer = self.optimizer(self.parameters())
        if self.scheduler is None:
            return optimizer
        steps = self.trainer.estimated_stepping_batches
        if not math.isfinite(steps):
            raise ValueError("the schedule needs the length of the run: set trainer.max_epochs or trainer.max_steps.")
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": self.scheduler(optimizer, int(steps)), "interval": "step"},
        }

    def _evaluate(self, split: str, metrics: MetricCollection, batch: Batch) -> None:
        images, labels = batch
        logits = self(images)
        metrics.update(logits, labels)
        self.log(f"{split}/loss", F.cross_entropy(logits, labels), batch_size=len(images), sync_dist=True)
        self.log_dict(metrics)
