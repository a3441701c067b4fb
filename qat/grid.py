"""The integer codes that a quantized tensor may have."""

from __future__ import annotations

from dataclasses import dataclass

from qat.messages import shown


@dataclass(frozen=True)
class Grid:
    """The integer codes of one quantized tensor: `bits` wide, signed or not, optionally `narrow`.

    `narrow` drops the lowest code, so that a signed grid is symmetric around 0.

    >>> Grid(4), Grid(4).qmin, Grid(4).qmax
    (Grid(bits=4, signed=True, narrow=False), -8, 7)
    >>> Grid(4, narrow=True).qmin, Grid(8, signed=False).qmax
    (-7, 255)

    Raises:
        ValueError: bits outside 2..8 (1..8 for an unsigned grid), or a flag that is not a bool.
    """

    bits: int
    signed: bool = True
    narrow: bool = False

    def __post_init__(self) -> None:
        for name in ("signed", "narrow"):
            if not isinstance(value := getattr(self, name), bool):
                raise ValueError(f"{name}={shown(value)} of a Grid is neither True nor False: write {name}=False.")
        lowest = 2 if self.signed else 1
        if not isinstance(self.bits, int) or isinstance(self.bits, bool) or not lowest <= self.bits <= 8:
            kind = "a signed" if self.signed else "an unsigned"
            raise ValueError(
                f"bits={shown(self.bits)} is not a valid width for {kind} grid: write a whole number from {lowest} to 8, "
                "or null to leave the tensor in float."
            )

    @property
    def qmin(self) -> int:
        """The lowest code."""
        return (-(2 ** (self.bits - 1)) if self.signed else 0) + int(self.narrow)

    @property
    def qmax(self) -> int:
        """The highest code."""
        return 2 ** (self.bits - 1) - 1 if self.signed else 2**self.bits - 1
