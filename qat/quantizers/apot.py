"""Additive powers of two (Li et al. 2020, https://arxiv.org/abs/1909.13144)."""

from __future__ import annotations

from itertools import product

import torch
from torch import Tensor

from qat.observers import Observer
from qat.quantizers.codebook import Codebook
from qat.spec import QuantSpec

TERMS: dict[int, tuple[tuple[int, ...], ...]] = {
    2: ((1,),),
    3: ((1, 2, 4),),
    4: ((1, 4, 8), (2,)),
    5: ((2, 8, 32), (1, 4, 16)),
    6: ((2, 16, 64), (1, 8, 32), (4,)),
}
"""Bits of a signed grid -> groups of powers of two; a level is a sum of at most one out of each group (the paper's k = 2;
groups as in the authors' code). An unsigned grid stores no sign, so it has the groups of one bit more."""


class APoT(Codebook):
    """Levels are ± sums of powers of two, at most one out of each group of `TERMS`, times the scale: dense near 0, without the
    coarse outer steps of plain powers of two. 4 bits: 0, ±1, ±2, ±3, ±4, ±6, ±8, ±10. The scale learns as in LSQ.

    Differs from the paper: weights are not normalised to mean 0 and variance 1 before rounding; their gradient is 0 beyond the
    outermost level, where the authors' code for CIFAR-10 lets it pass; the gradient of the scale is multiplied by LSQ's
    factor; an activation is rounded to 8 bits first.

    Raises:
        ValueError: a grid that is not symmetric, an unsigned one for a weight, or bits outside 2..6 (unsigned: 2..5).
    """

    sums: Tensor

    def __init__(self, spec: QuantSpec, shape: tuple[int, ...] = (), observer: Observer | None = None) -> None:
        super().__init__(spec, shape, observer)
        groups = [(0, *powers) for powers in TERMS[self.bits + self._bits_without_sign]]
        magnitudes = {sum(chosen) for chosen in product(*groups)}
        sums = sorted(magnitudes if self._bits_without_sign else magnitudes | {-m for m in magnitudes})
        self.register_buffer("sums", torch.tensor(sums, dtype=torch.float32), persistent=False)

    def possible_bits(self) -> tuple[int, ...]:
        widths = [bits - self._bits_without_sign for bits in TERMS]
        return (4, *(bits for bits in widths if bits not in (1, 4)))

    @property
    def _bits_without_sign(self) -> int:
        """The bits that an unsigned grid saves because it stores no sign."""
        return 0 if self.fine_grid.signed else 1

    def levels(self) -> Tensor:
        return self.sums
