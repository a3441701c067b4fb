"""Whether the grid of an activation is signed, decided from the data."""

from __future__ import annotations

from dataclasses import dataclass, field

from qat.grid import Grid
from qat.observers import MinMax
from qat.spec import QuantSpec

NEGLIGIBLE = 2.0**-12
"""Negative values up to this times the largest value count as 0: they are rounding errors of float operations."""


@dataclass
class SignFromData:
    """Decides from the extremes of an activation whether its grid is signed; an unsigned one is one bit finer.

    spec: the spec of the signed form.
    """

    spec: QuantSpec
    extremes: MinMax = field(init=False)

    def __post_init__(self) -> None:
        self.extremes = MinMax(self.spec)

    def is_signed(self) -> bool:
        """Whether a negative value was seen, or only zeros, which prove nothing.

        Raises:
            RuntimeError: no data yet.
        """
        lo, hi = (float(bound) for bound in self.extremes.range())
        return not (hi > 0.0 and lo >= -NEGLIGIBLE * hi)

    def grid(self, bits: int, signed: bool) -> Grid:
        """The grid with these bits and this sign."""
        return Grid(bits, signed, narrow=self.spec.grid.narrow and signed)
