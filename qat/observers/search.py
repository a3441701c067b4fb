"""The base class of observers that search for the best range, and the search."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from qat.arguments import is_whole_number
from qat.observers.histogram import Histogram
from qat.spec import QuantSpec

Loss = Callable[[Tensor, Tensor], Tensor]
"""The losses of k ranges [lo, hi] of each row: lo, hi float32 (k, n_qparams) -> float64 (k, n_qparams)."""


AT_ONCE = 2**18
"""Number of codes of all rows and ranges whose losses are computed in one call: 2 MB, which a cache holds."""


class SearchingObserver(Histogram):
    """A histogram whose range is found by `search`.

    Args:
        candidates: number of fractions of the full range to try.

    Raises:
        ValueError: candidates is not a whole number, or < 1.
    """

    def __init__(self, spec: QuantSpec, candidates: int = 100) -> None:
        if not is_whole_number(candidates):
            raise ValueError(
                f"candidates={candidates!r} is not possible: write a whole number, 1 or more, such as 100."
            )
        self.candidates = candidates
        super().__init__(spec)


def search(
    spec: QuantSpec, lo: Tensor, hi: Tensor, loss: Loss, candidates: int, rounds: int = 2, at_once: int = 1
) -> tuple[Tensor, Tensor]:
    """The range with the smallest loss for each row, among the fractions 1 / candidates, 2 / candidates, ..., 1 of [lo, hi].

    Symmetric grids shrink both bounds together; affine grids shrink one bound at a time, the upper one first, `rounds` times
    in turn. Among ranges with equal losses the widest wins.

    Args:
        spec: of the tensor.
        lo, hi: the full range, float32 (n_qparams,).
        loss: to minimise.
        candidates: number of fractions.
        rounds: how often an affine grid searches each of its bounds.
        at_once: number of ranges of each row that `loss` gets in one call, at most.
    """
    lo, hi = full_range(spec, lo, hi)
    if spec.symmetric:
        best = _best_fraction(loss, lo, hi, (True, True), candidates, at_once)
        return lo * best, hi * best
    lo_fraction = hi_fraction = torch.ones_like(lo)
    for _ in range(rounds):
        hi_fraction = _best_fraction(loss, lo * lo_fraction, hi, (False, True), candidates, at_once)
        lo_fraction = _best_fraction(loss, lo, hi * hi_fraction, (True, False), candidates, at_once)
    return lo * lo_fraction, hi * hi_fraction


def full_range(spec: QuantSpec, lo: Tensor, hi: Tensor) -> tuple[Tensor, Tensor]:
    """The widest range that the search tries: [lo, hi] with 0 in it, on both sides of 0 alike if the grid is symmetric."""
    if spec.symmetric:
        max_abs = (torch.maximum(-lo, hi) if spec.grid.signed else hi).clamp(min=0.0)
        return -max_abs, max_abs
    return lo.clamp(max=0.0), hi.clamp(min=0.0)


def one_by_one(loss: Loss) -> Loss:
    """The losses of k ranges from a loss of one range: lo, hi float32 (n_qparams,) -> float64 (n_qparams,)."""
    return lambda lo, hi: torch.stack([loss(*bounds) for bounds in zip(lo, hi, strict=True)])


def cumulative(x: Tensor) -> Tensor:
    """Sums of the first 0, 1, ..., n columns: (rows, n) -> (rows, n + 1)."""
    return torch.nn.functional.pad(x.cumsum(dim=1), (1, 0))


def _best_fraction(
    loss: Loss, lo: Tensor, hi: Tensor, shrinks: tuple[bool, bool], candidates: int, at_once: int
) -> Tensor:
    """The fraction in (0, 1] with the smallest loss for each row: float32 (n_qparams,). shrinks: which bounds it scales."""
    fractions = (torch.arange(candidates, 0, -1, dtype=torch.float64, device=lo.device) / candidates).float()
    best, smallest = torch.ones_like(lo), torch.full_like(lo, torch.inf, dtype=torch.float64)
    for tried in fractions.split(at_once):
        shrunk = [bound * tried[:, None] if shrink else bound for bound, shrink in zip((lo, hi), shrinks, strict=True)]
        losses = loss(*torch.broadcast_tensors(*shrunk))
        least, widest = losses.amin(dim=0), losses.argmin(dim=0)
        best = torch.where(least < smallest, tried[widest], best)
        smallest = torch.minimum(least, smallest)
    return best
