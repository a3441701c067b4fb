"""From a batch of the user's dataloader to what the network is called with."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import lightning as L
import torch
from lightning.pytorch.trainer.states import RunningStage
from torch import Tensor

from qat.messages import type_of
from qat.torch_private import tree_map_only
from qat.training.lightning.private_api import transfer_batch
from qat.transform.batches import named_parts

NetworkInputs = Tensor | tuple[Any, ...] | dict[str, Any]
"""What a network is called with: a tensor, a tuple of arguments or a dict of keyword arguments."""
BatchToInputs = Callable[[Any], NetworkInputs]
"""From a batch of the dataloader to the network's inputs."""


def first_tensor(batch: Any) -> NetworkInputs:
    """The default `BatchToInputs`: the batch itself, or the first part of (images, labels); named parts as a dict.

    Of a dict the network gets what its forward takes (`qat.transform.batches.call_of`).

    Raises:
        ValueError: neither is a tensor, nor has named parts.
    """
    if (named := named_parts(batch)) is not None:
        return named
    first = batch[0] if isinstance(batch, tuple | list) and batch else batch
    if isinstance(first, Tensor):
        return first
    if (named := named_parts(first)) is not None:
        return named
    raise ValueError(
        f"a batch is {type_of(batch)}: say what the network is called with, for example "
        "QuantizationAwareTraining(policy, inputs=lambda batch: batch.image)."
    )


def batch_as_in_evaluation(
    trainer: L.Trainer, module: L.LightningModule, batch: Any, device: torch.device | None = None
) -> Any:
    """The batch after the transfer hooks of module or datamodule, which run as in validation.

    So a hook with `if self.trainer.training:` augments nothing.

    Args:
        trainer: the Trainer of `module`.
        module: the user's LightningModule.
        batch: a batch of one of its dataloaders.
        device: where to move it. None: to the module's device.
    """
    with _validating(trainer):
        return transfer_batch(module, batch, device)


def move_inputs(inputs: NetworkInputs, device: torch.device | None = None, dtype: torch.dtype | None = None) -> Any:
    """The inputs on `device`, their floating-point tensors as `dtype`. None: unchanged."""
    return tree_map_only(Tensor, lambda x: x.to(device, dtype if x.is_floating_point() else None), inputs)


@contextmanager
def _validating(trainer: L.Trainer) -> Iterator[None]:
    stage = trainer.state.stage
    trainer.state.stage = RunningStage.VALIDATING
    try:
        yield
    finally:
        trainer.state.stage = stage
