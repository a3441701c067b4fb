"""Fits that can be compared bit by bit: one writes a checkpoint in every hook, others resume each of them."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import Checkpoint
from torch import Generator, Tensor, nn
from torch.utils._pytree import tree_flatten_with_path
from torch.utils.data import DataLoader, Dataset
from torchmetrics.classification import MulticlassAccuracy

from qat.training.callbacks import QuantizationAwareTraining
from tests.training.user_modules import CLASSES, Classifier, images, trainer


class AugmentedImages(Dataset[Any]):
    """Images with noise from the global random state of torch, numpy and Python, in whichever process they are loaded."""

    def __init__(self, n: int = 40) -> None:
        self.pixels, self.labels = images(n).tensors

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        noise = torch.rand(()) + random.random() + np.random.rand()  # noqa: NPY002
        return self.pixels[index] + 0.1 * noise.float(), self.labels[index]


class RandomClassifier(Classifier):
    """Uses random numbers in the step, means and a metric over the epoch, and a schedule that depends on what is logged."""

    def __init__(self, loader: Callable[[], Any], manual: bool = False) -> None:
        super().__init__(lr=0.05)
        self.loader = loader
        self.train_accuracy = MulticlassAccuracy(CLASSES, average="micro")
        self.dropout = nn.Dropout(0.2)

    def train_dataloader(self) -> Any:
        return self.loader()

    def val_dataloader(self) -> DataLoader[Any]:
        return DataLoader(AugmentedImages(12), 6)  # its iterator draws from the global random state

    def on_train_epoch_start(self) -> None:
        torch.rand(2)

    def on_train_start(self) -> None:
        torch.rand(3)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        if isinstance(batch, dict):
            batch = [torch.cat(parts) for parts in zip(*batch.values(), strict=True)]
        logits = self(self.dropout(batch[0]))
        loss = F.cross_entropy(logits, batch[1])
        self.train_accuracy(logits, batch[1])
        self.log("train/acc", self.train_accuracy, on_step=False, on_epoch=True)
        self.log("train/loss", loss, on_step=True, on_epoch=True)
        self.log("train/max", loss, on_step=False, on_epoch=True, reduce_fx=max)
        return loss

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), lr=self.lr, momentum=0.9)
        plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, factor=0.7, patience=0, mode="max")
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": plateau, "monitor": "val/top1", "strict": False}}


class CheckpointInEveryHook(Checkpoint):
    """Writes a checkpoint in every hook that Lightning's own checkpoint callbacks write in."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.n = 0

    def save(self, trainer: L.Trainer, hook: str) -> None:
        if not trainer.sanity_checking:
            trainer.save_checkpoint(self.folder / f"{self.n:02}_{hook}_{trainer.global_step}.ckpt")
            self.n += 1

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        self.save(trainer, "batch")

    def on_validation_end(self, trainer: L.Trainer, *_: Any) -> None:
        self.save(trainer, "validation")

    def on_train_epoch_end(self, trainer: L.Trainer, *_: Any) -> None:
        self.save(trainer, "epoch")


class FitDiary(L.Callback):
    """Records the sum of every batch, and what was logged at the end of every epoch and of every validation."""

    def __init__(self) -> None:
        self.pages: list[tuple[Any, ...]] = []

    def note(self, trainer: L.Trainer, *what: Any) -> None:
        logged = {name: value.item() for name, value in sorted(trainer.callback_metrics.items())}
        self.pages.append((*what, trainer.current_epoch, trainer.global_step, logged))

    def on_train_batch_start(self, trainer: L.Trainer, module: L.LightningModule, batch: Any, batch_idx: int) -> None:
        batch = batch if isinstance(batch, list) else next(iter(batch.values()))
        self.pages.append(("batch", batch_idx, batch[0].double().sum().item()))

    def on_validation_end(self, trainer: L.Trainer, *_: Any) -> None:
        if not trainer.sanity_checking:
            self.note(trainer, "validation")

    def on_train_epoch_end(self, trainer: L.Trainer, *_: Any) -> None:
        self.note(trainer, "epoch")


class Fit:
    """A fit from the same weights, in a process that has used other random numbers before."""

    def __init__(
        self,
        folder: Path,
        loader: Callable[[], Any],
        kind: Callable[..., Any] = RandomClassifier,
        seed: int = 0,
        **options: Any,
    ) -> None:
        torch.manual_seed(seed), np.random.seed(seed), random.seed(seed)  # noqa: NPY002
        self.module = kind(loader)
        self.diary = FitDiary()
        self.qat = QuantizationAwareTraining("w4a8", batches=[images(16).tensors[0]], quantizer_lr_ratio=0.01)
        callbacks = [self.qat, self.diary, *options.pop("callbacks", [])]
        self.trainer = trainer(
            folder, *callbacks, **{"enable_checkpointing": None, "num_sanity_val_steps": 1, "epochs": 3, **options}
        )

    def run(self, ckpt_path: Path | None = None) -> Fit:
        self.trainer.fit(self.module, ckpt_path=ckpt_path, weights_only=True)
        return self

    def end(self) -> dict[str, Any]:
        """The state in which it ended."""
        loop = self.trainer.fit_loop
        return {
            "weights": {name: value.clone() for name, value in self.module.state_dict().items()},
            "optimizers": [optimizer.state_dict() for optimizer in self.trainer.optimizers],
            "schedulers": [config.scheduler.state_dict() for config in self.trainer.lr_scheduler_configs],
            "random": [torch.get_rng_state(), torch.tensor(np.random.get_state()[1].tolist()), random.getstate()],  # noqa: NPY002
            "generators": [g.get_state() for g in loop._combined_loader.generators],  # type: ignore[union-attr]
            "steps": [self.trainer.global_step, self.trainer.current_epoch, loop.epoch_loop._batches_that_stepped],
        }


def differences(a: Any, b: Any) -> list[str]:
    """The places in which two results of `Fit.end()` have different bits."""
    (left, shape), (right, other) = tree_flatten_with_path(a), tree_flatten_with_path(b)
    if shape != other:
        return ["structure"]
    pairs = [(path, x, y) for (path, x), (_, y) in zip(left, right, strict=True)]
    same = [torch.equal(x, y) if isinstance(x, Tensor) else x == y for _, x, y in pairs]
    return ["".join(map(str, path)) for (path, _, _), equal in zip(pairs, same, strict=True) if not equal]


def loader_with_generator() -> DataLoader[Any]:
    return DataLoader(AugmentedImages(), 8, shuffle=True, generator=Generator().manual_seed(3))


def checkpoints(folder: Path) -> Iterator[Path]:
    yield from sorted(folder.glob("*.ckpt"))
