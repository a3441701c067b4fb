"""The full range of the data."""

from __future__ import annotations

from typing import Self

import torch
from torch import Tensor

from qat.observers.base import Observer


class MinMax(Observer):
    """lo and hi are the smallest and largest value seen. Independent of the order of the data."""

    lo: Tensor | None
    hi: Tensor | None

    def reset(self) -> None:
        self.lo = self.hi = None

    def update(self, x: Tensor) -> None:
        self._widen(*extremes(x.float()))

    def range(self) -> tuple[Tensor, Tensor]:
        return self._require_data(self.lo), self._require_data(self.hi)

    def merge(self, other: Self) -> None:
        if other.lo is not None and other.hi is not None:
            self._widen(other.lo, other.hi)

    def _widen(self, lo: Tensor, hi: Tensor) -> None:
        self.lo = lo if self.lo is None else torch.minimum(self.lo, lo)
        self.hi = hi if self.hi is None else torch.maximum(self.hi, hi)


def extremes(x: Tensor) -> tuple[Tensor, Tensor]:
    """The smallest and the largest element of each row: (rows, n) -> 2 x (rows,)."""
    if len(x) == 1:  # without dim, torch uses all threads
        lo, hi = torch.aminmax(x)
        return lo[None], hi[None]
    lo, hi = torch.aminmax(x, dim=1)
    return lo, hi
