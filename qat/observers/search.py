"""The base class of observers that search for the best range, and the search."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from qat.observers.histogram import Histogram
from qat.spec import QuantSpec

Loss = Callable[[Tensor, Tensor], Tensor]
"""The loss of the ranges [lo, hi]: lo, hi float32 (n_qparams,) -> float64 (n_qparams,)."""


class SearchingObserver(Histogram):
    """A histogram whose range is found by `search`.

    Args:
        candidates: number of fractions of the full range to try.

    Raises:
        ValueError: candidates < 1.
    """

    def __init__(self, spec: QuantSpec, candidates: int = 100) -> None:
        if candidates < 1:
            raise ValueError(f"candidates={candidates!r} must be at least 1: write for example 100.")
        self.candidates = candidates
        super().__init__(spec)


def search(
    spec: QuantSpec, lo: Tensor, hi: Tensor, loss: Loss, candidates: int, rounds: int = 2
) -> tuple[Tensor, Tensor]:
    """The range with the smallest loss for each row, among the fractions 1 / candidates, 2 / candidates, ..., 1 of [lo, hi].

    Symmetric grids shrink both bounds together; affine grids shrink one bound at a time, the upper one first, `rounds` times
    in turn. Of ranges with equal losses, the widest.

    Args:
        lo, hi: the full range, float32 (n_qparams,).
    """
    if spec.symmetric:
        max_abs = (torch.maximum(-lo, hi) if spec.grid.signed else hi).clamp(min=0.0)
        best = _best_fraction(lambda f: loss(-max_abs * f, max_abs * f), candidates)
        return -max_abs * best, max_abs * best
    lo, hi = lo.clamp(max=0.0), hi.clamp(min=0.0)
    lo_fraction = hi_fraction = torch.ones_like(lo)
    for _ in range(rounds):
        hi_fraction = _best_fraction(partial(_loss_of_hi, loss, lo * lo_fraction, hi), candidates)
        lo_fraction = _best_fraction(partial(_loss_of_lo, loss, lo, hi * hi_fraction), candidates)
    return lo * lo_fraction, hi * hi_fraction


def _loss_of_hi(loss: Loss, lo: Tensor, hi: Tensor, fraction: float) -> Tensor:
    return loss(lo, hi * fraction)


def _loss_of_lo(loss: Loss, lo: Tensor, hi: Tensor, fraction: float) -> Tensor:
    return loss(lo * fraction, hi)


def _best_fraction(loss: Callable[[float], Tensor], candidates: int) -> Tensor:
    """The fraction in (0, 1] with the smallest loss for each row: float32 (n_qparams,)."""
    smallest = loss(1.0)
    best = torch.ones_like(smallest, dtype=torch.float32)
    for step in range(candidates - 1, 0, -1):
        losses = loss(step / candidates)
        best = torch.where(losses < smallest, step / candidates, best)
        smallest = torch.minimum(losses, smallest)
    return best
