"""The average range of the batches."""

from __future__ import annotations

from typing import Self

import torch
from torch import Tensor

from qat.arguments import is_number
from qat.observers.base import Observer
from qat.spec import QuantSpec


class MovingAverage(Observer):
    """Exponential average of each batch's smallest and largest value (Jacob et al. 2018, section 3.1).

    Depends on the order of the batches. `merge` averages both sides, weighted by their numbers of batches.

    Args:
        momentum: weight of the old average.

    Raises:
        ValueError: momentum outside [0, 1).
    """

    depends_on_batches = True

    lo: Tensor | None
    hi: Tensor | None

    def __init__(self, spec: QuantSpec, momentum: float = 0.9) -> None:
        if not (is_number(momentum) and 0.0 <= momentum < 1.0):
            raise ValueError(f"momentum={momentum!r} of MovingAverage must lie in [0, 1): write for example 0.9.")
        self.momentum = momentum
        super().__init__(spec)

    def reset(self) -> None:
        self.lo = self.hi = None
        self.batches = 0

    def update(self, x: Tensor) -> None:
        lo, hi = torch.aminmax(x.float(), dim=1)
        momentum = self.momentum
        self.lo = lo if self.lo is None else momentum * self.lo + (1 - momentum) * lo
        self.hi = hi if self.hi is None else momentum * self.hi + (1 - momentum) * hi
        self.batches += 1

    def range(self) -> tuple[Tensor, Tensor]:
        return self._require_data(self.lo), self._require_data(self.hi)

    def merge(self, other: Self) -> None:
        if other.lo is None or other.hi is None:
            return
        share = self.batches / (self.batches + other.batches)
        self.lo = other.lo if self.lo is None else share * self.lo + (1 - share) * other.lo
        self.hi = other.hi if self.hi is None else share * self.hi + (1 - share) * other.hi
        self.batches += other.batches
