"""Network inputs from anybody's dataloaders, as the loops of Lightning would make them."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.trainer.states import RunningStage
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Generator, Tensor
from torch.utils._pytree import tree_leaves
from torch.utils.data import DataLoader, IterableDataset

NetworkInputs = Tensor | tuple[Any, ...] | dict[str, Any]
Inputs = Callable[[Any], NetworkInputs]
"""From a batch of the dataloader to what the network is called with: a tensor, a tuple or a dict of arguments."""

CALIBRATION_BATCH = 32
"""At most so many images at once, however many a training step has: so there is a share for each of several processes."""


def first_tensor(batch: Any) -> NetworkInputs:
    """The default: the batch itself, or the first part of (images, labels).

    Raises:
        ValueError: neither is a tensor.
    """
    first = batch[0] if isinstance(batch, tuple | list) and batch else batch
    if isinstance(first, Tensor):
        return first
    keys = f" with keys {', '.join(map(repr, batch))}" if isinstance(batch, dict) else ""
    raise ValueError(
        f"a batch is a {type(batch).__name__}{keys}: say what the network is called with, for example "
        "QuantizationAwareTraining(policy, inputs=lambda batch: batch['image'])."
    )


def calibration_inputs(
    trainer: L.Trainer, module: L.LightningModule, n_images: int, inputs: Inputs, seed: int = 0
) -> Iterator[NetworkInputs]:
    """About `n_images` network inputs from the train dataloader of a running fit, without its augmentation.

    A loader over a map-style dataset is not iterated: images are drawn from its dataset by `seed`. Transfer hooks run as if
    in validation, so that `if self.trainer.training:` augments nothing. All of torch's, numpy's and Python's random state is
    as before between two batches and afterwards, and equal seeds give equal batches.

    Raises:
        ValueError: the train dataloader is not one torch DataLoader.
    """
    trainer.fit_loop.setup_data()
    loader = trainer.train_dataloader
    if not isinstance(loader, DataLoader):
        raise ValueError(
            f"the train dataloader is a {type(loader).__name__}: pass the network's inputs yourself, "
            "QuantizationAwareTraining(policy, batches=[...])."
        )
    remaining = n_images
    with isolate_rng():
        torch.manual_seed(seed)
        np.random.seed(seed)  # noqa: NPY002 (datasets augment with the global state)
        random.seed(seed)
        with _generator_kept(loader):
            batches = list(_some_batches(loader, n_images, seed))
    for batch in batches:
        if remaining <= 0:
            return
        leaf = next((x for x in tree_leaves(batch) if isinstance(x, Tensor) and x.ndim), None)
        remaining -= len(leaf) if leaf is not None else n_images
        with isolate_rng():
            torch.manual_seed(seed)
            yield inputs(batch_as_in_evaluation(trainer, module, batch))


def batch_as_in_evaluation(
    trainer: L.Trainer, module: L.LightningModule, batch: Any, device: torch.device | None = None
) -> Any:
    """The batch after the transfer hooks of module or datamodule, on `device` (default: the module's)."""
    with _stage(trainer, RunningStage.VALIDATING):
        batch = module._on_before_batch_transfer(batch, dataloader_idx=0)  # what Lightning's loops call, too
        return module._apply_batch_transfer_handler(batch, device=device, dataloader_idx=0)


def find_test_dataloaders(
    trainer: L.Trainer, module: L.LightningModule, dataloaders: Any = None
) -> list[Iterable[Any]]:
    """The test dataloaders: those given, else the datamodule's or the module's.

    Raises:
        ValueError: there are none.
    """
    datamodule = getattr(trainer, "datamodule", None)
    if dataloaders is not None:
        found = dataloaders
    elif datamodule is not None:
        datamodule.setup("test")
        found = datamodule.test_dataloader()
    elif has_test_data(trainer, module):
        found = module.test_dataloader()
    else:
        raise ValueError(NO_TEST_DATA)
    return list(found) if isinstance(found, list | tuple) else [found]


def has_test_data(trainer: L.Trainer, module: L.LightningModule, dataloaders: Any = None) -> bool:
    """Whether `find_test_dataloaders` will find some."""
    source: Any = getattr(trainer, "datamodule", None) or module
    base = L.LightningModule if isinstance(source, L.LightningModule) else L.LightningDataModule
    return dataloaders is not None or type(source).test_dataloader is not base.test_dataloader


NO_TEST_DATA = (
    "there is no test data to measure on: give trainer.fit a datamodule with test_dataloader, or pass "
    "dataloaders=... to the callback."
)


def _some_batches(loader: DataLoader[Any], n_images: int, seed: int) -> Iterator[Any]:
    dataset = loader.dataset
    if isinstance(dataset, IterableDataset) or not hasattr(dataset, "__len__") or loader.batch_sampler is None:
        seen = 0
        for batch in loader:
            yield batch
            leaf = next((x for x in tree_leaves(batch) if isinstance(x, Tensor) and x.ndim), None)
            seen += len(leaf) if leaf is not None else n_images
            if seen >= n_images:
                return
        return
    order = torch.randperm(len(dataset), generator=Generator().manual_seed(seed))[:n_images].tolist()
    yield from DataLoader(
        dataset,
        batch_size=min(loader.batch_size or CALIBRATION_BATCH, CALIBRATION_BATCH),
        sampler=order,
        collate_fn=loader.collate_fn,
        generator=Generator().manual_seed(seed),
    )


@contextmanager
def _stage(trainer: L.Trainer, stage: RunningStage) -> Iterator[None]:
    before = trainer.state.stage
    trainer.state.stage = stage
    try:
        yield
    finally:
        trainer.state.stage = before


@contextmanager
def _generator_kept(loader: DataLoader[Any]) -> Iterator[None]:
    """The loader's own generators keep their state, so that a fit shuffles as if nobody had looked."""
    owners = (loader, loader.sampler, loader.batch_sampler)
    generators = [g for g in (getattr(owner, "generator", None) for owner in owners) if isinstance(g, Generator)]
    before = [g.get_state() for g in generators]
    try:
        yield
    finally:
        for generator, state in zip(generators, before, strict=True):
            generator.set_state(state)
