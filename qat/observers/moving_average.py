"""The range of a typical batch."""

from __future__ import annotations

from typing import Self

import torch
from torch import Tensor

from qat.observers.base import Observer
from qat.spec import QuantSpec


class MovingAverage(Observer):
    """Exponential average of each batch's smallest and largest value (Jacob et al. 2018, section 3.1).

    Depends on the order of the batches. `merge` averages the two sides by the number of batches each has seen.
    """

    lo: Tensor | None
    hi: Tensor | None

    def __init__(self, spec: QuantSpec, momentum: float = 0.9) -> None:
        if not 0.0 <= momentum < 1.0:
            raise ValueError(f"momentum={momentum!r} of MovingAverage must lie in [0, 1): write for example 0.9.")
        self.momentum = momentum
        super().__init__(spec)

    def reset(self) -> None:
        self.lo = self.hi = None
        self.batches = 0

    def update(self, x: Tensor) -> None:
        lo, hi = torch.aminmax(x.float(), dim=1)
        keep = self.momentum
        self.lo = lo if self.lo is None else keep * self.lo + (1 - keep) * lo
        self.hi = hi if self.hi is None else keep * self.hi + (1 - keep) * hi
        self.batches += 1

    def range(self) -> tuple[Tensor, Tensor]:
        return self._seen(self.lo), self._seen(self.hi)

    def merge(self, other: Self) -> None:
        if other.lo is None or other.hi is None:
            return
        share = self.batches / (self.batches + other.batches)
        self.lo = other.lo if self.lo is None else share * self.lo + (1 - share) * other.lo
        self.hi = other.hi if self.hi is None else share * self.hi + (1 - share) * other.hi
        self.batches += other.batches
