"""The range with the smallest squared error."""

from __future__ import annotations

import torch
from torch import Tensor

from qat.observers.histogram import Histogram
from qat.observers.search import search
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
        counts, centers = self._seen(self.counts).double(), self.centers().double()
        below = _cumulative(counts), _cumulative(counts * centers)
        return search(self.spec, *super().range(), lambda lo, hi: self._error(below, lo, hi), self.candidates)

    def _error(self, below: tuple[Tensor, Tensor], lo: Tensor, hi: Tensor) -> Tensor:
        """sum(count * (value - center)^2) of the bins' centers, less sum(count * center^2), which no range changes.

        A code stands for consecutive bins: their count and their sum are differences of the cumulative ones, so that a range
        costs one look-up a code, however many bins there are.

        Args:
            below: how many elements lie in the first 0, 1, ..., BINS bins, and their sum: (n_qparams, BINS + 1).
        """
        grid, reach = self.spec.grid, self._seen(self.reach)[:, None]
        scale, zero_point = (p.double()[:, None] for p in self.spec.qparams(lo, hi))
        steps = torch.arange(grid.qmin, grid.qmax + 1, device=scale.device) - zero_point
        between = (steps[:, 1:] - 0.5) * scale
        first = ((between / reach + 1.0) * (self.BINS / 2) - 0.5).ceil().clamp(0, self.BINS).long()
        first = torch.nn.functional.pad(torch.nn.functional.pad(first, (1, 0)), (0, 1), value=self.BINS)
        count, total = (b.gather(1, first).diff(dim=1) for b in below)
        value = steps * scale
        return (value * (value * count - 2.0 * total)).sum(dim=1)


def _cumulative(x: Tensor) -> Tensor:
    """Sums of the first 0, 1, ..., n columns: (rows, n) -> (rows, n + 1)."""
    return torch.nn.functional.pad(x.cumsum(dim=1), (1, 0))
