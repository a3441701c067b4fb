"""The range that keeps the most information (Migacz 2017, "8-bit inference with TensorRT", GTC)."""

from __future__ import annotations

import torch
from torch import Tensor

from qat.functional import quantize
from qat.observers.search import SearchingObserver, one_by_one, search


class KL(SearchingObserver):
    """Searches the range whose quantized distribution Q diverges least from the clipped one, P: min KL(P || Q).

    P is the histogram with everything outside the range moved into its outermost bins; Q spreads the counts of each code
    evenly over the bins that P occupies. Zeros do not count, as in NVIDIA's own calibrator: after a ReLU they are half of all
    values, every range represents them exactly, and an evenly spread code 0 would shrink the range towards nothing. Made for
    activations: the histogram of a few hundred weights has too many empty bins for a divergence.

    Differs from the paper: signed grids keep their sign (the paper takes |x|), affine grids move one bound at a time, and
    candidates are fractions of the full range, so that one search serves every number of bits.
    """

    def range(self) -> tuple[Tensor, Tensor]:
        lo, hi = super().range()
        if not bool(torch.isfinite(lo).all() and torch.isfinite(hi).all()):
            return lo, hi  # the spec refuses it
        counts, centers = self._without_zeros(), self.centers()
        if self.spec.symmetric and not self.spec.grid.signed:
            counts = torch.where(centers > 0, counts, 0.0)  # negative values do not matter: the grid has none
        used = counts.sum(dim=0).nonzero()
        if len(used):
            counts, centers = (x[:, int(used[0]) : int(used[-1]) + 1] for x in (counts, centers))
        divergence = one_by_one(lambda lo, hi: self._divergence(counts, centers, lo, hi))
        return search(self.spec, lo, hi, divergence, self.candidates, rounds=1)

    def _without_zeros(self) -> Tensor:
        """The counts, float64, with the bin of 0.0 set to its neighbour's count."""
        counts = self._require_data(self.counts).double()
        zero = self.BINS // 2
        counts[:, zero] = counts[:, zero + 1]
        return counts

    def _divergence(self, counts: Tensor, centers: Tensor, lo: Tensor, hi: Tensor) -> Tensor:
        """KL(P || Q) of the ranges [lo, hi] in nats (n_qparams,); infinite if Q is 0 where P is not, or is all 0."""
        grid = self.spec.grid
        scale, zero_point = (p[:, None] for p in self.spec.qparams(lo, hi))
        codes = quantize(centers, scale, zero_point, grid.qmin, grid.qmax).long() - grid.qmin
        half_step = scale / 2
        lowest = (grid.qmin - zero_point) * scale - half_step
        highest = (grid.qmax - zero_point) * scale + half_step
        inside = (centers > lowest) & (centers < highest)
        kept = torch.where(inside, counts, 0.0)
        clipped = _clipped(counts, inside)
        occupied = (clipped > 0).double()
        shape = (len(counts), grid.qmax - grid.qmin + 1)
        mass = torch.zeros(shape, dtype=torch.float64, device=counts.device).scatter_add_(1, codes, kept)
        bins_of_code = torch.zeros_like(mass).scatter_add_(1, codes, occupied)
        p = clipped / clipped.sum(dim=1, keepdim=True)
        q = occupied * (mass / bins_of_code.clamp(min=1.0)).gather(1, codes)
        q = q / q.sum(dim=1, keepdim=True)
        terms = torch.where(p > 0, p * torch.log(p / q), 0.0)
        return torch.where(kept.any(dim=1), terms.sum(dim=1).nan_to_num(nan=torch.inf), torch.inf)


def _clipped(counts: Tensor, inside: Tensor) -> Tensor:
    """The counts, with those outside of `inside`, an interval in each row, moved into its outermost bins."""
    bins = torch.arange(counts.shape[1], device=counts.device)
    first = inside.double().argmax(dim=1, keepdim=True)
    last = counts.shape[1] - 1 - inside.flip(1).double().argmax(dim=1, keepdim=True)
    result = torch.where(inside, counts, 0.0)
    result.scatter_add_(1, first, torch.where(bins < first, counts, 0.0).sum(dim=1, keepdim=True))
    return result.scatter_add_(1, last, torch.where(bins > last, counts, 0.0).sum(dim=1, keepdim=True))
