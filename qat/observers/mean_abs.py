"""The initial scale of LSQ."""

from __future__ import annotations

from typing import Self

import torch
from torch import Tensor

from qat.observers.base import Observer
from qat.spec import QuantSpec


class MeanAbs(Observer):
    """The range whose scale is 2 * mean(|x|) / sqrt(qmax) (Esser et al. 2020, section 2.1). Order-independent.

    Raises:
        ValueError: an affine spec: all negative values would be clipped.
    """

    total: Tensor | None

    def __init__(self, spec: QuantSpec) -> None:
        if not spec.symmetric:
            raise ValueError("MeanAbs finds a scale but no zero-point: write symmetric: true, or another observer.")
        super().__init__(spec)

    def reset(self) -> None:
        self.total = None
        self.elements = 0

    def update(self, x: Tensor) -> None:
        total = x.double().abs().sum(dim=1)
        self.total = total if self.total is None else self.total + total
        self.elements += x.shape[1]

    def range(self) -> tuple[Tensor, Tensor]:
        mean = self._require_data(self.total) / self.elements
        qmax = self.spec.grid.qmax
        hi = (2 * mean / qmax**0.5 * qmax).float()
        return (-hi if self.spec.grid.signed else torch.zeros_like(hi)), hi

    def merge(self, other: Self) -> None:
        if other.total is not None:
            self.total = other.total if self.total is None else self.total + other.total
            self.elements += other.elements
