"""Copies of the network that a callback or the LightningModule keeps, such as an average of its weights.

A copy is made in `setup`: before calibration, and possibly before the network is prepared. It must get the quantizers and their
first ranges, and only floating-point tensors may be averaged.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import StochasticWeightAveraging, WeightAveraging
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_swa_avg_fn

from qat.training.lightning.private_api import copy_tensors
from qat.transform import quantizers, set_bits
from qat.transform.record import is_prepared_root

AVERAGING = (WeightAveraging, StochasticWeightAveraging)


def repeat_averaging_setup(
    trainer: Any, module: L.LightningModule, stage: str, earlier: Sequence[L.Callback] | None = None
) -> None:
    """Let averaging callbacks copy the module again.

    Args:
        trainer: the Trainer of the fit.
        module: the user's LightningModule, with quantizers.
        stage: of `Callback.setup`.
        earlier: callbacks whose `setup` ran before the quantizers were inserted. None: all.
    """
    for callback in trainer.callbacks if earlier is None else earlier:
        if isinstance(callback, AVERAGING):
            callback.setup(trainer, module, stage)


def copy_ranges_to_averages(trainer: Any, module: L.LightningModule, network: nn.Module) -> None:
    """Give the uncalibrated quantizers in every copy of `network` the state of the quantizers that they were copied from.

    Copies are looked for in the attributes of callbacks and in the LightningModule, which may hold a mean teacher.
    """
    originals = quantizers(network)
    for network_copy in _copies(trainer, module, network):
        copied = quantizers(network_copy)
        if copied.keys() != originals.keys():
            continue
        for name, quantizer in copied.items():
            if not quantizer.ready:
                quantizer.load_state_dict(copy.deepcopy(originals[name].state_dict()))


def set_bits_of_averages(trainer: Any, module: L.LightningModule, network: nn.Module, bits: int | None) -> None:
    """Call `set_bits` for the `live_copies` of `network`: averages, and copies in the LightningModule.

    What other callbacks keep, such as `Report`, is the network of an earlier moment and stays as it is.
    """
    for network_copy in live_copies(trainer, module, network):
        set_bits(network_copy, bits)


def live_copies(trainer: Any, module: L.LightningModule, network: nn.Module) -> Iterator[nn.Module]:
    """The copies of `network` that follow it."""
    snapshots = {id(value) for c in trainer.callbacks if not isinstance(c, AVERAGING) for value in vars(c).values()}
    yield from (copied for copied in _copies(trainer, module, network) if id(copied) not in snapshots)


def copy_integers_into_averages(trainer: Any) -> None:
    """Make averages copy zero-points, flags and counters instead of averaging them: 0.9 * 3 + 0.1 * 3 would become 2."""
    for callback in trainer.callbacks:
        for average in (value for value in vars(callback).values() if isinstance(value, AveragedModel)):
            if average.multi_avg_fn is not None:
                average.multi_avg_fn = _copying_integers_in_lists(average.multi_avg_fn)
            else:
                average.avg_fn = _copying_integers(average.avg_fn or get_swa_avg_fn())


def _copies(trainer: Any, module: L.LightningModule, network: nn.Module) -> Iterator[nn.Module]:
    """Prepared networks other than `network` in the LightningModule and in attributes of callbacks."""
    attributes = (value for callback in trainer.callbacks for value in vars(callback).values())
    for holder in (module, *(value for value in attributes if isinstance(value, nn.Module))):
        yield from (m for m in holder.modules() if is_prepared_root(m) and m is not network)


def _copying_integers(average: Callable[..., Any]) -> Callable[..., Any]:
    def average_or_copy(averaged: Tensor, current: Tensor, count: Any) -> Any:
        return average(averaged, current, count) if averaged.is_floating_point() else current

    return average_or_copy


def _copying_integers_in_lists(average: Callable[..., Any]) -> Callable[..., Any]:
    @torch.no_grad()
    def average_or_copy(averaged: list[Tensor], current: list[Tensor], count: Any) -> None:
        if averaged[0].is_floating_point():  # the tensors of a list have one dtype
            average(averaged, current, count)
        else:
            copy_tensors(averaged, current)

    return average_or_copy
