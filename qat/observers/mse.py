"""The range with the smallest squared error."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from qat.functional import dequantize, quantize
from qat.observers.histogram import Histogram
from qat.spec import QuantSpec


class MSE(Histogram):
    """Searches the range whose quantization error, summed over all the data, is smallest.

    Tries `candidates` fractions of the full range. Symmetric grids shrink both ends together; affine grids shrink one end
    at a time, twice in turn. Never worse than min-max on the data it saw, up to the width of a histogram bin.
    """

    def __init__(self, spec: QuantSpec, candidates: int = 100) -> None:
        if candidates < 1:
            raise ValueError(f"candidates={candidates!r} must be at least 1: write for example 100.")
        self.candidates = candidates
        super().__init__(spec)

    def range(self) -> tuple[Tensor, Tensor]:
        lo, hi = super().range()
        if self.spec.symmetric:
            reach = (torch.maximum(-lo, hi) if self.spec.grid.signed else hi).clamp(min=0.0)
            best = self._best(lambda f: (-reach * f, reach * f))
            return -reach * best, reach * best
        lo, hi = lo.clamp(max=0.0), hi.clamp(min=0.0)
        low = high = torch.ones_like(lo)
        for _ in range(2):
            high = self._best(lambda f, low=low: (lo * low, hi * f))  # type: ignore[misc]
            low = self._best(lambda f, high=high: (lo * f, hi * high))  # type: ignore[misc]
        return lo * low, hi * high

    def _best(self, candidate: Callable[[float], tuple[Tensor, Tensor]]) -> Tensor:
        """The fraction in (0, 1], one a row, whose candidate(fraction) -> (lo, hi) has the smallest error."""
        counts, centers = self._seen(self.counts), self.centers()
        used = counts.topk(
            int((counts > 0).sum(dim=1).max()), dim=1
        ).indices  # of 4096 bins, a group of 16 weights fills 16
        counts, centers = counts.gather(1, used).double(), centers.gather(1, used)
        best = torch.ones(len(counts), device=counts.device)
        smallest = torch.full_like(best, torch.inf, dtype=torch.float64)
        grid = self.spec.grid
        for step in range(self.candidates, 0, -1):
            fraction = step / self.candidates
            scale, zero_point = (p[:, None] for p in self.spec.qparams(*candidate(fraction)))
            codes = quantize(centers, scale, zero_point, grid.qmin, grid.qmax)
            error = ((dequantize(codes, scale, zero_point) - centers).double().square() * counts).sum(dim=1)
            better = error < smallest
            smallest = torch.where(better, error, smallest)
            best = torch.where(better, fraction, best)
        return best
