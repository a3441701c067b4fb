"""The range without its rarest values."""

from __future__ import annotations

import torch
from torch import Tensor

from qat.arguments import is_number
from qat.observers.histogram import Histogram
from qat.spec import QuantSpec


class Percentile(Histogram):
    """Leaves out (100 - percentile) / 2 percent of the values at each end, or twice that at the top if the grid starts at 0.

    Args:
        percentile: share of the values to keep, in %.

    Raises:
        ValueError: percentile outside (50, 100].
    """

    def __init__(self, spec: QuantSpec, percentile: float = 99.99) -> None:
        if not (is_number(percentile) and 50.0 < percentile <= 100.0):
            raise ValueError(f"percentile={percentile!r} must lie in (50, 100]: write for example 99.99.")
        self.percentile = percentile
        super().__init__(spec)

    def range(self) -> tuple[Tensor, Tensor]:
        counts, half_width = self._require_data(self.counts), self._require_data(self.half_width)
        smallest, largest = super().range()
        from_zero = self.spec.symmetric and not self.spec.grid.signed
        outside = (1.0 - self.percentile / 100.0) / (1.0 if from_zero else 2.0)
        below = counts.double().cumsum(dim=1) / counts.sum(dim=1, keepdim=True)
        width = half_width / (self.BINS / 2)
        first = torch.searchsorted(below, torch.full_like(below[:, :1], outside), right=True).squeeze(1)
        last = torch.searchsorted(below, torch.full_like(below[:, :1], 1.0 - outside)).squeeze(1)
        lo, hi = first * width - half_width, (last + 1) * width - half_width
        lo, hi = torch.maximum(lo, smallest), torch.minimum(hi, largest)
        return torch.where(smallest.isfinite(), lo, smallest), torch.where(largest.isfinite(), hi, largest)
