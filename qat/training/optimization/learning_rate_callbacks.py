"""Lightning's callbacks that set learning rates, and the learned scales."""

from __future__ import annotations

from typing import Any
from weakref import WeakKeyDictionary

from lightning.pytorch.callbacks import LearningRateFinder, StochasticWeightAveraging
from torch.optim import Optimizer

from qat.training.lightning.private_api import get_swa_rates, set_swa_rates
from qat.training.optimization.scale_optimizer import QUANTIZER_GROUP
from qat.training.optimization.scheduler_values import was_split

_given_rates: WeakKeyDictionary[StochasticWeightAveraging, float | list[float]] = WeakKeyDictionary()
"""The rates that the user gave to each callback."""


def check_separate_learning_rates(trainer: Any) -> None:
    """Check that no callback sets one learning rate for weights and scales.

    Raises:
        ValueError: one does.
    """
    for callback in trainer.callbacks:
        if isinstance(callback, LearningRateFinder | StochasticWeightAveraging):
            raise ValueError(
                f"{type(callback).__name__} sets one learning rate for all parameters: use quantizer_lr_ratio beside it, "
                "and no quantizer_optimizer."
            )


def scale_found_learning_rates(trainer: Any, lr_ratio: float) -> None:
    """Multiply the learning rate of the scales by `lr_ratio` where a LearningRateFinder gave all groups the same."""
    for callback in trainer.callbacks:
        if not isinstance(callback, LearningRateFinder) or callback.optimal_lr is None:
            continue
        found = callback.optimal_lr.suggestion()
        for optimizer in trainer.optimizers:
            for group in optimizer.param_groups:
                if QUANTIZER_GROUP in group and group["lr"] == found:
                    group["lr"] *= lr_ratio


def scale_swa_learning_rates(trainer: Any, lr_ratio: float) -> None:
    """Give StochasticWeightAveraging a learning rate for each group that the optimizer has after `split_parameter_groups`."""
    for callback in trainer.callbacks:
        if isinstance(callback, StochasticWeightAveraging) and len(trainer.optimizers) == 1:
            rates = _given_rates.setdefault(callback, get_swa_rates(callback))  # an earlier fit has changed them
            set_swa_rates(callback, _rate_of_each_group(rates, trainer.optimizers[0], lr_ratio))


def _rate_of_each_group(rates: float | list[float], optimizer: Optimizer, lr_ratio: float) -> list[float]:
    """A list counts the groups as the user made them: the scales of a group come right after it."""
    expanded: list[float] = []
    user_groups = 0
    for i, group in enumerate(optimizer.param_groups):
        user_groups += not was_split(optimizer.param_groups, i)
        rate = rates if isinstance(rates, float) else rates[min(user_groups, len(rates)) - 1]
        expanded.append(rate * lr_ratio if QUANTIZER_GROUP in group else rate)
    return expanded
