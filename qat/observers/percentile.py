"""The range without its rarest values."""

from __future__ import annotations

import torch
from torch import Tensor

from qat.observers.histogram import Histogram
from qat.spec import QuantSpec


class Percentile(Histogram):
    """Leaves (100 - percentile) / 2 percent of the values out on each side; all of it on top where the grid starts at 0."""

    def __init__(self, spec: QuantSpec, percentile: float = 99.99) -> None:
        if not 50.0 < percentile <= 100.0:
            raise ValueError(f"percentile={percentile!r} must lie in (50, 100]: write for example 99.99.")
        self.percentile = percentile
        super().__init__(spec)

    def range(self) -> tuple[Tensor, Tensor]:
        counts, reach = self._seen(self.counts), self._seen(self.reach)
        least, most = super().range()
        from_zero = self.spec.symmetric and not self.spec.grid.signed
        outside = (1.0 - self.percentile / 100.0) / (1.0 if from_zero else 2.0)
        below = counts.double().cumsum(dim=1) / counts.sum(dim=1, keepdim=True)
        width = 2 * reach / self.BINS
        first = torch.searchsorted(below, torch.full_like(below[:, :1], outside), right=True).squeeze(1)
        last = torch.searchsorted(below, torch.full_like(below[:, :1], 1.0 - outside)).squeeze(1)
        lo, hi = first * width - reach, (last + 1) * width - reach
        lo, hi = torch.maximum(lo, least), torch.minimum(hi, most)
        return torch.where(least.isfinite(), lo, least), torch.where(most.isfinite(), hi, most)
