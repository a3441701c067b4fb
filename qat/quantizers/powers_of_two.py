"""Weights that are signed powers of two (INQ, Zhou et al. 2017, https://arxiv.org/abs/1702.03044)."""

from __future__ import annotations

import torch
from torch import Tensor

from qat.observers import Observer
from qat.quantizers.codebook import Codebook
from qat.spec import QuantSpec


class PowersOfTwo(Codebook):
    """Levels 0 and ±2^0 ... ±2^(n - 1) times the scale, n = 2^(bits - 1) - 1: multiplications are shifts.

    The scale learns as in LSQ.

    Differs from the paper: with b bits, one of them for 0 and one for the sign, the paper has 2^(b - 2) magnitudes; a code has
    room for 2^(b - 1) - 1; the scale is learned and need not be a power of two; all weights train together, and go to the
    nearest level (the paper freezes them in portions).

    Raises:
        ValueError: an activation, a grid that is not symmetric and signed, or bits other than 2, 3, 4.
    """

    powers: Tensor

    def __init__(self, spec: QuantSpec, shape: tuple[int, ...] = (), observer: Observer | None = None) -> None:
        super().__init__(spec, shape, observer)
        self.require_weight()
        powers = 2.0 ** torch.arange(2 ** (self.bits - 1) - 1, dtype=torch.float32)
        self.register_buffer("powers", torch.cat([-powers.flip(0), powers.new_zeros(1), powers]), persistent=False)

    def possible_bits(self) -> tuple[int, ...]:
        return (4, 3, 2)

    def levels(self) -> Tensor:
        return self.powers
