"""Calibration images from the user's train dataloader, and the calibration of a network with them."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.utilities.combined_loader import CombinedLoader
from torch import Generator, Tensor, nn
from torch.utils.data import BatchSampler, DataLoader, IterableDataset, RandomSampler, SequentialSampler
from torch.utils.data.distributed import DistributedSampler

from qat.contexts import training_mode
from qat.messages import type_of
from qat.torch_private import tree_leaves
from qat.training.lightning.inputs import BatchToInputs, NetworkInputs, batch_as_in_evaluation, move_inputs
from qat.training.lightning.private_api import data_source
from qat.training.lightning.random_numbers import seeded
from qat.transform import calibrate
from qat.transform.batches import UnfitBatchError
from qat.transform.distributed import gather, shard

CALIBRATION_BATCH = 32
"""The largest number of images in a batch, whatever a training step has: so several processes get a share each."""
SAMPLERS_OF_ALL = (SequentialSampler, RandomSampler, DistributedSampler)
"""Samplers that draw from all that they are given, whatever a single pass or process leaves out."""


def calibrate_in_module(module: L.LightningModule, network: nn.Module, batches: Iterable[NetworkInputs]) -> int:
    """Give every quantizer of `network` that has no range its first one, with `module` in evaluation mode.

    All processes must call it, with the same batches: each runs through its share of them.

    Returns:
        The number of quantizers that were set.

    Raises:
        ValueError: the network cannot run on them.
    """
    with training_mode(module, False):
        dtype = next(network.parameters()).dtype  # bfloat16 with Trainer(precision="bf16-true")
        try:
            return calibrate(network, (move_inputs(batch, dtype=dtype) for batch in shard(batches)))
        except (RuntimeError, TypeError, UnfitBatchError) as error:
            said = str(error.__cause__ or error).partition("\n")[0]
            raise ValueError(
                f"{type(network).__name__} cannot run on the batches that calibrate it ({said}): say how a batch becomes its "
                "inputs, QuantizationAwareTraining(policy, inputs=lambda batch: ...), or pass them, batches=[...]."
            ) from error


def calibration_inputs(
    trainer: L.Trainer, module: L.LightningModule, n_images: int, inputs: BatchToInputs, seed: int = 0
) -> Iterator[NetworkInputs]:
    """About `n_images` network inputs from the train dataloader of a running fit, without its augmentation.

    A loader over a map-style dataset is not iterated: `seed` draws from the images that its sampler can give. Transfer hooks
    run as in validation. Equal seeds give equal batches. The random state of torch, numpy and Python is restored between two
    batches and afterwards.

    Args:
        trainer: the Trainer of the fit.
        module: the user's LightningModule.
        n_images: the number of images after which no further batch is drawn.
        inputs: from a batch to the network's inputs.
        seed: of the images and of random numbers that datasets and hooks use.

    Raises:
        ValueError: the train dataloader is not a single DataLoader of torch.
    """
    trainer.fit_loop.setup_data()
    loader = trainer.train_dataloader
    if loader is None:
        raise ValueError(
            f"limit_train_batches={trainer.limit_train_batches} leaves nothing to calibrate and to train with: write a number "
            "above 0, or leave it out."
        )
    if not isinstance(loader, DataLoader):
        raise ValueError(
            f"the train dataloader is {type_of(loader)}: pass the network's inputs yourself, "
            "QuantizationAwareTraining(policy, batches=[...])."
        )
    with seeded(seed, [loader]):
        batches = list(_draw_batches(loader, n_images, seed))
    remaining = n_images
    for batch in batches:
        if remaining <= 0:
            return
        remaining -= _batch_size(batch, n_images)
        with seeded(seed):
            yield inputs(batch_as_in_evaluation(trainer, module, batch))


def first_inputs(
    trainer: L.Trainer,
    module: L.LightningModule,
    batches: Iterable[NetworkInputs] | None,
    inputs: BatchToInputs,
    seed: int = 0,
) -> NetworkInputs:
    """The first of `batches`; without them, the inputs of two samples, before the loops have asked for their dataloaders.

    Randomness is left alone, and the other arguments are those of `calibration_inputs`. A validation or test without a fit
    has dataloaders of its own, and they are used.

    Raises:
        ValueError: the first dataloader is not a DataLoader of torch.
    """
    if batches is not None:
        return next(iter(batches))
    with seeded(seed):
        loader = data_source(trainer).dataloader()
        while isinstance(loader, list | tuple | CombinedLoader) and not isinstance(loader, DataLoader):
            found = loader.flattened if isinstance(loader, CombinedLoader) else loader
            loader = found[0] if found else None
        if not isinstance(loader, DataLoader):
            raise ValueError(f"the first dataloader is {type_of(loader)}: pass one of torch.")
        with seeded(seed, [loader]):
            batch = next(_draw_batches(loader, 2, seed))
        return inputs(batch_as_in_evaluation(trainer, module, batch))


def _draw_batches(loader: DataLoader[Any], n_images: int, seed: int) -> Iterator[Any]:
    dataset = loader.dataset
    if isinstance(dataset, IterableDataset) or not hasattr(dataset, "__len__") or loader.batch_sampler is None:
        drawn = 0
        for batch in loader:
            yield batch
            drawn += _batch_size(batch, n_images)
            if drawn >= n_images:
                return
        return
    indices = training_indices(loader)
    order = torch.randperm(len(indices), generator=Generator().manual_seed(seed))[:n_images].tolist()
    yield from DataLoader(
        dataset,
        batch_size=min(loader.batch_size or CALIBRATION_BATCH, CALIBRATION_BATCH),
        sampler=[indices[i] for i in order],
        collate_fn=loader.collate_fn,
        generator=Generator().manual_seed(seed),
    )


def training_indices(loader: DataLoader[Any]) -> Sequence[Any]:
    """What the sampler of a loader draws from its dataset, which may hold validation images as well.

    It is the same in all processes, which must all call it. Integers are sorted, so that the order in which they are drawn
    does not matter. The sampler itself is left as it is.
    """
    in_batches = type(loader.batch_sampler) is not BatchSampler
    sampler: Any = loader.batch_sampler if in_batches else loader.sampler
    source = getattr(sampler, "data_source", getattr(sampler, "dataset", None))
    if type(sampler) in SAMPLERS_OF_ALL or (isinstance(sampler, DistributedSampler) and isinstance(source, range)):
        return range(len(source))  # type: ignore[arg-type]
    drawn: Iterable[Any] = _copy_of_sampler(sampler, loader.dataset)
    drawn = itertools.chain.from_iterable(drawn) if in_batches else drawn
    n: int = len(loader.dataset)  # type: ignore[arg-type]
    indices = [int(i) if isinstance(i, np.integer | Tensor) else i for i in itertools.islice(drawn, n)]
    found = dict.fromkeys(itertools.chain.from_iterable(gather(indices)))
    return sorted(found) if all(isinstance(i, int) for i in found) else list(found)


def _copy_of_sampler(sampler: Any, dataset: Any) -> Any:
    """A copy that can be iterated without changing what the fit draws: some samplers count their passes."""
    try:
        return copy.deepcopy(sampler, {id(dataset): dataset})
    except (TypeError, RuntimeError):  # it holds what cannot be copied, such as an iterator that is under way
        return sampler


def _batch_size(batch: Any, default: int) -> int:
    """The length of the first tensor in a batch; `default` if there is none."""
    tensor = next((leaf for leaf in tree_leaves(batch) if isinstance(leaf, Tensor) and leaf.ndim), None)
    return len(tensor) if tensor is not None else default
