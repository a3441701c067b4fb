"""Copies of the network that somebody else keeps, such as an average of its weights, with their quantizers in order.

A copy is made in `setup`, before anything is calibrated, and maybe before anything is prepared. It must get the quantizers,
their first ranges, and averages of nothing but real numbers.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import StochasticWeightAveraging, WeightAveraging
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.swa_utils import AveragedModel, get_swa_avg_fn

from qat.training.lightning.network import is_prepared_root
from qat.training.optimization.parameter_groups import MARK
from qat.transform import quantizers, set_bits

AVERAGING = (WeightAveraging, StochasticWeightAveraging)


def repeat_averaging_setup(trainer: Any, module: L.LightningModule, stage: str, first: Sequence[L.Callback]) -> None:
    """Let the averaging callbacks in `first`, whose turn came before quantizers were inserted, copy the module once more."""
    for callback in first:
        if isinstance(callback, AVERAGING):
            callback.setup(trainer, module, stage)


def copy_ranges_to_averages(trainer: Any, module: L.LightningModule, network: nn.Module) -> None:
    """Give the quantizers of every uncalibrated copy of `network` the state of the quantizers it was copied from.

    Copies are looked for in the attributes of callbacks, and in the LightningModule itself (a mean teacher, say).
    """
    source = quantizers(network)
    for twin in _copies(trainer, module, network):
        theirs = quantizers(twin)
        if theirs.keys() != source.keys():
            continue
        for name, quantizer in theirs.items():
            if not quantizer.ready:
                quantizer.load_state_dict(copy.deepcopy(source[name].state_dict()))


def set_bits_of_averages(trainer: Any, module: L.LightningModule, network: nn.Module, bits: int | None) -> None:
    """`set_bits` for the copies of `network` that follow it: averages, and those in the LightningModule itself."""
    kept = {id(value) for c in trainer.callbacks if not isinstance(c, AVERAGING) for value in vars(c).values()}
    for twin in _copies(trainer, module, network):
        if id(twin) not in kept:  # by Report: the network of an earlier moment
            set_bits(twin, bits)


def copy_integers_into_averages(trainer: Any) -> None:
    """Zero-points, flags and counters are copied into an average, never averaged: 0.9 * 3 + 0.1 * 3 would become 2."""
    for callback in trainer.callbacks:
        for average in (value for value in vars(callback).values() if isinstance(value, AveragedModel)):
            if average.multi_avg_fn is not None:
                average.multi_avg_fn = _many(average.multi_avg_fn)
            else:
                average.avg_fn = _one(average.avg_fn or get_swa_avg_fn())


def scale_swa_learning_rates(trainer: Any, lr_ratio: float) -> None:
    """The learning rates of StochasticWeightAveraging for the groups that the optimizer has after `split_parameter_groups`."""
    for callback in trainer.callbacks:
        if isinstance(callback, StochasticWeightAveraging) and len(trainer.optimizers) == 1:
            callback._swa_lrs = _rates(callback._swa_lrs, trainer.optimizers[0], lr_ratio)


def _copies(trainer: Any, module: L.LightningModule, network: nn.Module) -> Iterator[nn.Module]:
    held = (value for callback in trainer.callbacks for value in vars(callback).values())
    for holder in (module, *(value for value in held if isinstance(value, nn.Module))):
        yield from (m for m in holder.modules() if is_prepared_root(m) and m is not network)


def _rates(given: float | list[float], optimizer: Optimizer, lr_ratio: float) -> list[float]:
    """One rate a group. A list counts the groups as the user made them: the scales of a group come right after it."""
    rates: list[float] = []
    users = 0
    for i, group in enumerate(optimizer.param_groups):
        follows = MARK in group and i > 0 and MARK not in optimizer.param_groups[i - 1]
        users += not follows
        rate = given if isinstance(given, float) else given[min(users, len(given)) - 1]
        rates.append(rate * lr_ratio if MARK in group else rate)
    return rates


def _one(average: Callable[..., Any]) -> Callable[..., Any]:
    def average_or_copy(averaged: Tensor, current: Tensor, count: Any) -> Any:
        return average(averaged, current, count) if averaged.is_floating_point() else current

    return average_or_copy


def _many(average: Callable[..., Any]) -> Callable[..., Any]:
    @torch.no_grad()
    def average_or_copy(averaged: list[Tensor], current: list[Tensor], count: Any) -> None:
        if averaged[0].is_floating_point():  # a list is of one type
            average(averaged, current, count)
        else:
            torch._foreach_copy_(averaged, current)

    return average_or_copy
