"""The range that keeps the most information (Migacz 2017, "8-bit inference with TensorRT", GTC)."""

from __future__ import annotations

import torch
from torch import Tensor

from qat.observers.search import AT_ONCE, SearchingObserver, cumulative, search


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
        counts = self._without_zeros()
        if self.spec.symmetric and not self.spec.grid.signed:
            counts[:, : self.BINS // 2] = 0.0  # negative values do not matter: the grid has none
        below = cumulative(counts), cumulative((counts > 0).double()), cumulative(torch.xlogy(counts, counts))
        at_once = max(1, AT_ONCE // (len(counts) * 2**self.spec.grid.bits))

        def divergence(lo: Tensor, hi: Tensor) -> Tensor:
            return self._divergence(counts, below, lo, hi)

        return search(self.spec, lo, hi, divergence, self.candidates, rounds=1, at_once=at_once)

    def _without_zeros(self) -> Tensor:
        """The counts, float64, with the bin of 0.0 set to its neighbour's count."""
        counts = self._require_data(self.counts).double()
        zero = self.BINS // 2
        counts[:, zero] = counts[:, zero + 1]
        return counts

    def _divergence(self, counts: Tensor, below: tuple[Tensor, Tensor, Tensor], lo: Tensor, hi: Tensor) -> Tensor:
        """KL(P || Q) in nats, infinite if Q is 0 where P is not, or is all 0.

        The bins of a code are consecutive and Q is the same in all of them, so a range costs a few look-ups per code, however
        many bins there are: KL(P || Q) = sum over bins of p log p - sum over codes of p log q.

        Args:
            counts: (n_qparams, BINS).
            below: count, occupied bins and sum of count * log(count) of the first 0, 1, ..., BINS bins, (n_qparams, BINS + 1).
            lo, hi: the ranges, float32 (k, n_qparams).

        Returns:
            float64 (k, n_qparams).
        """
        first = self._first_bins(lo, hi)
        elements, occupied, entropy = (b.expand(*lo.shape, -1).gather(-1, first) for b in below)
        total = below[0][:, -1:]
        kept, bins = elements.diff(dim=-1), occupied.diff(dim=-1)
        start, last = first[..., :1], first[..., -1:] - 1
        empty = last < start
        inner = entropy[..., -1:] - entropy[..., :1]  # then what is clipped on each side joins the outermost bin
        mass = kept.clone()
        for bin, clipped in ((start, elements[..., :1]), (last, total - elements[..., -1:])):
            bin = bin.clamp(0, self.BINS - 1)
            there = counts.expand(*lo.shape, -1).gather(-1, bin)
            code = (first[..., 1:] <= bin).sum(dim=-1, keepdim=True).clamp(max=kept.shape[-1] - 1)
            mass.scatter_add_(-1, code, clipped)
            bins = bins.scatter_add(-1, code, ((there == 0) & (clipped > 0)).double())
            inner = inner + torch.xlogy(there + clipped, there + clipped) - torch.xlogy(there, there)
        inner = torch.where(start == last, torch.xlogy(total, total), inner)
        bins = torch.where(start == last, bins.clamp(max=1.0), bins)
        q = kept / bins.clamp(min=1.0) / kept.sum(dim=-1, keepdim=True)
        cross = torch.where(mass > 0, mass * torch.log(q), 0.0).sum(dim=-1)
        divergence = (inner[..., 0] - cross) / total[:, 0] - torch.log(total[:, 0])
        return torch.where(empty[..., 0], torch.inf, divergence.nan_to_num(nan=torch.inf))

    def _first_bins(self, lo: Tensor, hi: Tensor) -> Tensor:
        """The first bin of each code, and behind the last code the first one that is clipped: int64 (k, n_qparams, codes + 1).

        A center half-way between two codes belongs to the even one, and one at the end of the range is clipped.
        """
        grid, half_width = self.spec.grid, self._require_data(self.half_width)[:, None].double()
        scale, zero_point = (p.double()[..., None] for p in self.spec.qparams(lo, hi))
        codes = torch.arange(grid.qmin, grid.qmax + 2, device=scale.device)
        steps, is_odd = codes - zero_point, (codes % 2 == 1) != (zero_point.long() % 2 == 1)
        edges = (steps - 0.5) * (scale / half_width * (self.BINS / 2)) + (self.BINS / 2 - 0.5)
        tie = edges == edges.floor()
        goes_down = tie & is_odd
        goes_down[..., 0], goes_down[..., -1] = tie[..., 0], False
        found = torch.where(goes_down, edges + 1, edges.ceil()).clamp(0, self.BINS).long()
        return torch.minimum(torch.maximum(found, found[..., :1]), found[..., -1:])
