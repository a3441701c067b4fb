"""Learned scales in parameter groups of their own, in the optimizer that a `Trainer` builds some time after its callbacks."""

from __future__ import annotations

import weakref
from contextlib import ExitStack

from torch import nn

from qat.training.optimization.parameter_groups import split_parameter_groups

_waiting: weakref.WeakKeyDictionary[nn.Module, float] = weakref.WeakKeyDictionary()
"""Networks whose optimizers are not built yet, and the learning rates of their scales over those of their weights."""
_open = ExitStack()


def split_groups_of(network: nn.Module, lr_ratio: float) -> None:
    """From now on, optimizers put the scales of this network into groups of their own."""
    _waiting[network] = lr_ratio
    _renew()


def stop_splitting_groups_of(network: nn.Module) -> None:
    """The optimizer of this network exists: later ones are left as they are."""
    _waiting.pop(network, None)
    _renew()


def _renew() -> None:
    """Leave all contexts, and enter one for each waiting network: contexts nest, but trainings begin in any order."""
    _open.close()
    for network, ratio in _waiting.items():
        _open.enter_context(split_parameter_groups(network, ratio))
