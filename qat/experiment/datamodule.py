"""Batches of an ImageData, for Lightning's Trainer and without one."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator
from typing import Literal, cast

import lightning as L
import torch
from torch import Generator, Tensor
from torch.utils.data import DataLoader, Dataset, Sampler, Subset

from qat.data import ImageData, ImageDataset, Sample, TensorImages, collate
from qat.training.checkpoint.epoch_sampler import EpochSampler

SplitName = Literal["train", "val", "test"]


class ImageDataModule(L.LightningDataModule):
    """Loads uint8 batches, and normalises (in training: augments) them on the device.

    Args:
        data: the dataset, or a function that opens it: called once, when the data are first needed.
        batch_size: images of a training batch, in each process; a smaller last batch is dropped.
        eval_batch_size: images of a validation or test batch.
        num_workers: loading processes; None is 0 for images in memory, else one per core (at most 8).
        seed: with the epoch, it decides the order of the training images; a resumed run continues with the same orders.

    Raises:
        ValueError: a size is not positive, or `num_workers` is negative.
    """

    def __init__(
        self,
        data: ImageData | Callable[[], ImageData],
        batch_size: int = 128,
        eval_batch_size: int = 500,
        num_workers: int | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        for name, size in {"batch_size": batch_size, "eval_batch_size": eval_batch_size}.items():
            if size < 1:
                raise ValueError(f"{name}={size} is not positive: write the number of images in a batch.")
        if num_workers is not None and num_workers < 0:
            raise ValueError(f"num_workers={num_workers} is negative: write 0 to load in the main process.")
        self.batch_size = batch_size
        self.eval_batch_size = eval_batch_size
        self.num_workers = num_workers
        self.seed = seed
        self._source = data
        self._data: ImageData | None = None

    @property
    def data(self) -> ImageData:
        """The opened dataset."""
        if self._data is None:
            self._data = self._source() if callable(self._source) else self._source
            self._transform = self._data.batch_transform()
        return self._data

    def prepare_data(self) -> None:
        """Open the data, in one process per machine: only that one downloads and decodes."""
        _ = self.data

    def setup(self, stage: str) -> None:
        """Ignore two of Lightning's warnings where their cause is intended."""
        if isinstance(self.data.train, TensorImages):  # images in memory need no workers
            warnings.filterwarnings("ignore", message=".*does not have many workers which may be a bottleneck.*")
        if len(self.data.val) == 0:
            warnings.filterwarnings("ignore", message="Total length of `list` across ranks is zero.*")

    def train_dataloader(self) -> DataLoader[Sample]:
        train = self.data.train
        world_size, rank = (1, 0) if self.trainer is None else (self.trainer.world_size, self.trainer.global_rank)
        sampler = EpochSampler(len(train), self.seed, world_size, rank)
        return self._loader(train, self.batch_size, sampler=sampler, drop_last=len(sampler) > self.batch_size)

    def val_dataloader(self) -> DataLoader[Sample] | list[DataLoader[Sample]]:
        """An empty list if there are no validation images."""
        return self._loader(self.data.val, self.eval_batch_size) if len(self.data.val) else []

    def test_dataloader(self) -> DataLoader[Sample]:
        return self._loader(self.data.test, self.eval_batch_size)

    def on_after_batch_transfer(self, batch: Sample, dataloader_idx: int) -> Sample:
        """Network inputs (N, C, H, W), in a `-true` precision of the Trainer, else float32, and labels int64 (N,).

        They stay on the device of `batch`, and are augmented only in training.
        """
        if self.trainer is None:
            return self._normalise(batch)
        ready = self._normalise(batch, augment=self.trainer.training)
        converted: Sample = self.trainer.precision_plugin.convert_input(ready)  # Lightning did so with the bytes
        return converted

    def calibration_batches(self, n_images: int, batch_size: int = 100, seed: int = 0) -> list[Tensor]:
        """Network inputs of the train split, never augmented: batches of float32 (<= batch_size, C, H, W).

        Args:
            n_images: number of images in all batches together.
            batch_size: images of a batch.
            seed: decides which images are taken.

        Raises:
            ValueError: the train split has fewer images, or a number is not positive.
        """
        images = self._unaugmented("train")
        if not 1 <= n_images <= len(images):
            raise ValueError(
                f"n_images={n_images} is not possible: the train split has {len(images)} images, write 1 to {len(images)}."
            )
        if batch_size < 1:
            raise ValueError(f"batch_size={batch_size} is not positive: write the number of images in a batch.")
        chosen = torch.randperm(len(images), generator=Generator().manual_seed(seed))[:n_images].tolist()
        loader = self._loader(Subset(cast("Dataset[Sample]", images), chosen), batch_size)
        return [self._normalise(batch)[0] for batch in loader]

    def eval_batches(self, split: SplitName = "test") -> Iterator[Sample]:
        """Every image of a split, in order and never augmented: network inputs float32 (N, C, H, W), labels int64 (N,).

        Raises:
            ValueError: `split` is not "train", "val" or "test".
        """
        loader = self._loader(self._unaugmented(split), self.eval_batch_size)
        return (self._normalise(batch) for batch in loader)

    def example_inputs(self) -> Tensor:
        """One network input of the train split, float32 (1, C, H, W), always the same."""
        return self.calibration_batches(1)[0]

    def _unaugmented(self, split: SplitName) -> ImageDataset:
        splits = {
            "train": self.data.train_unaugmented or self.data.train,
            "val": self.data.val,
            "test": self.data.test,
        }
        if split not in splits:
            raise ValueError(f"split={split!r} is unknown: write 'train', 'val' or 'test'.")
        return splits[split]

    def _normalise(self, batch: Sample, augment: bool = False) -> Sample:
        images, labels = batch
        transform = self._transform.to(images.device).train(augment)
        return transform(images), labels

    def _loader(
        self, images: ImageDataset, batch_size: int, sampler: Sampler[int] | None = None, drop_last: bool = False
    ) -> DataLoader[Sample]:
        workers = self.num_workers
        if workers is None:
            workers = 0 if isinstance(self.data.train, TensorImages) else min(8, os.cpu_count() or 1)
        return DataLoader(
            cast("Dataset[Sample]", images),
            batch_size,
            sampler=sampler,
            drop_last=drop_last,
            num_workers=workers,
            persistent_workers=workers > 0,
            collate_fn=collate,
            pin_memory=torch.cuda.is_available(),
            generator=Generator().manual_seed(self.seed),  # else the loader draws from the global one
        )
