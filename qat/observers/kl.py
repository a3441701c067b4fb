"""The range that keeps the most information (Migacz 2017, "8-bit inference with TensorRT", GTC)."""

from __future__ import annotations

import torch
from torch import Tensor

from qat.functional import quantize
from qat.observers.histogram import Histogram
from qat.observers.search import search
from qat.spec import QuantSpec


class KL(Histogram):
    """Searches the range whose quantized distribution Q diverges least from the clipped one, P: min KL(P || Q).

    P is the histogram with everything outside of the range moved into its outermost bins; Q spreads what lies inside, code by
    code, evenly over the bins that P occupies. Zeros do not count, as in NVIDIA's own calibrator: behind a ReLU they are half
    of all values, every range holds them exactly, and an evenly spread code 0 would drive the range towards nothing. Made for
    activations: a histogram of a few hundred weights has gaps that no divergence can see through.

    Differs from the paper: signed grids keep their sign (the paper takes |x|), affine grids move one end at a time, and
    candidates are fractions of the full range, so that one search serves every number of bits.
    """

    def __init__(self, spec: QuantSpec, candidates: int = 100) -> None:
        if candidates < 1:
            raise ValueError(f"candidates={candidates!r} must be at least 1: write for example 100.")
        self.candidates = candidates
        super().__init__(spec)

    def range(self) -> tuple[Tensor, Tensor]:
        lo, hi = super().range()
        if not bool(torch.isfinite(lo).all() and torch.isfinite(hi).all()):
            return lo, hi  # for the spec to refuse
        counts, centers = self._without_zeros(), self.centers()
        if self.spec.symmetric and not self.spec.grid.signed:
            counts = torch.where(centers > 0, counts, 0.0)  # what such a grid cannot hold says nothing about its range
        used = counts.sum(dim=0).nonzero()
        if len(used):
            counts, centers = (x[:, int(used[0]) : int(used[-1]) + 1] for x in (counts, centers))
        return search(
            self.spec, lo, hi, lambda lo, hi: self._divergence(counts, centers, lo, hi), self.candidates, rounds=1
        )

    def _without_zeros(self) -> Tensor:
        """The counts, float64, with the bin of 0.0 as full as its neighbour."""
        counts = self._seen(self.counts).double()
        zero = self.BINS // 2
        counts[:, zero] = counts[:, zero + 1]
        return counts

    def _divergence(self, counts: Tensor, centers: Tensor, lo: Tensor, hi: Tensor) -> Tensor:
        """KL(P || Q) of the range [lo, hi] in nats, one a row; infinite where Q is 0 and P is not, or all of Q."""
        grid = self.spec.grid
        scale, zero_point = (p[:, None] for p in self.spec.qparams(lo, hi))
        codes = quantize(centers, scale, zero_point, grid.qmin, grid.qmax).long() - grid.qmin
        half = scale / 2
        lowest, highest = (grid.qmin - zero_point) * scale - half, (grid.qmax - zero_point) * scale + half
        inside = (centers > lowest) & (centers < highest)
        kept = torch.where(inside, counts, 0.0)
        clipped = _gathered(counts, inside)
        occupied = (clipped > 0).double()
        shape = (len(counts), grid.qmax - grid.qmin + 1)
        mass = torch.zeros(shape, dtype=torch.float64, device=counts.device).scatter_add_(1, codes, kept)
        width = torch.zeros_like(mass).scatter_add_(1, codes, occupied)
        p = clipped / clipped.sum(dim=1, keepdim=True)
        q = occupied * (mass / width.clamp(min=1.0)).gather(1, codes)
        q = q / q.sum(dim=1, keepdim=True)
        terms = torch.where(p > 0, p * torch.log(p / q), 0.0)
        return torch.where(kept.any(dim=1), terms.sum(dim=1).nan_to_num(nan=torch.inf), torch.inf)


def _gathered(counts: Tensor, inside: Tensor) -> Tensor:
    """The counts outside of `inside`, an interval of each row, added to its outermost bins."""
    bins = torch.arange(counts.shape[1], device=counts.device)
    first = inside.double().argmax(dim=1, keepdim=True)
    last = counts.shape[1] - 1 - inside.flip(1).double().argmax(dim=1, keepdim=True)
    gathered = torch.where(inside, counts, 0.0)
    gathered.scatter_add_(1, first, torch.where(bins < first, counts, 0.0).sum(dim=1, keepdim=True))
    return gathered.scatter_add_(1, last, torch.where(bins > last, counts, 0.0).sum(dim=1, keepdim=True))
