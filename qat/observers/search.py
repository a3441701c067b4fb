"""Searching the ends of a range."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from qat.spec import QuantSpec

Loss = Callable[[Tensor, Tensor], Tensor]
"""What the ranges [lo, hi] cost: lo, hi float32 (n_qparams,) -> float64 (n_qparams,)."""


def search(
    spec: QuantSpec, lo: Tensor, hi: Tensor, loss: Loss, candidates: int, rounds: int = 2
) -> tuple[Tensor, Tensor]:
    """The cheapest range of each row, among the fractions 1 / candidates, 2 / candidates, ..., 1 of [lo, hi].

    Symmetric grids shrink both ends together; affine grids shrink one end at a time, the upper one first, `rounds` times in
    turn. Of equally cheap ranges the widest.

    Args:
        lo, hi: the full range, float32 (n_qparams,).
    """
    if spec.symmetric:
        reach = (torch.maximum(-lo, hi) if spec.grid.signed else hi).clamp(min=0.0)
        best = _cheapest(lambda f: loss(-reach * f, reach * f), candidates)
        return -reach * best, reach * best
    lo, hi = lo.clamp(max=0.0), hi.clamp(min=0.0)
    low = high = torch.ones_like(lo)
    for _ in range(rounds):
        high = _cheapest(lambda f, low=low: loss(lo * low, hi * f), candidates)  # type: ignore[misc]
        low = _cheapest(lambda f, high=high: loss(lo * f, hi * high), candidates)  # type: ignore[misc]
    return lo * low, hi * high


def _cheapest(cost: Callable[[float], Tensor], candidates: int) -> Tensor:
    """The fraction in (0, 1], one a row, whose cost is smallest: float32 (n_qparams,)."""
    smallest = cost(1.0)
    best = torch.ones_like(smallest, dtype=torch.float32)
    for step in range(candidates - 1, 0, -1):
        found = cost(step / candidates)
        best = torch.where(found < smallest, step / candidates, best)
        smallest = torch.minimum(found, smallest)
    return best
