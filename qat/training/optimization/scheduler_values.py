"""Values that a scheduler gets one by one for each parameter group, where scales were taken out of groups."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import CyclicLR, LambdaLR, MultiplicativeLR, OneCycleLR, ReduceLROnPlateau

from qat.training.optimization.scale_optimizer import QUANTIZER_GROUP

SCHEDULERS: tuple[type[Any], ...] = (LambdaLR, MultiplicativeLR, OneCycleLR, CyclicLR, ReduceLROnPlateau)
"""The schedulers of torch, and bases of others, that take a list with one value for each group."""


def was_split(groups: Sequence[dict[str, Any]], index: int) -> bool:
    """Whether the group has the scales of the group before it, with which it was one."""
    return index > 0 and QUANTIZER_GROUP in groups[index] and QUANTIZER_GROUP not in groups[index - 1]


@contextmanager
def values_for_split_groups() -> Iterator[None]:
    """Inside the `with` block, schedulers take lists with one value for each group that the user made.

    The scales that were taken out of a group get its value.
    """
    originals = {scheduler: scheduler.__init__ for scheduler in SCHEDULERS}
    for scheduler, original in originals.items():
        scheduler.__init__ = _with_values_of_all(original)
    try:
        yield
    finally:
        for scheduler, original in originals.items():
            scheduler.__init__ = original


def _with_values_of_all(original: Callable[..., None]) -> Callable[..., None]:
    @functools.wraps(original)
    def initialize(self: Any, optimizer: Optimizer, *args: Any, **kwargs: Any) -> None:
        groups = optimizer.param_groups
        original(
            self,
            optimizer,
            *(_values_of_all(value, groups) for value in args),
            **{name: _values_of_all(value, groups) for name, value in kwargs.items()},
        )

    return initialize


def _values_of_all(values: Any, groups: Sequence[dict[str, Any]]) -> Any:
    of_user = [i for i in range(len(groups)) if not was_split(groups, i)]
    if not isinstance(values, list | tuple) or len(values) != len(of_user):
        return values
    given = dict(zip(of_user, values, strict=True))
    return [given[i] if i in given else given[i - 1] for i in range(len(groups))]
