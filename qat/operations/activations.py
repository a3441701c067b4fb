"""Functions of every single value of one tensor."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from qat.operations.base import Operation, Role


@dataclass(frozen=True)
class Rectify(Operation):
    """min(max(x, 0), ceiling); max(x, 0) if the ceiling is None."""

    ceiling: float | None = None
    role: ClassVar[Role] = Role.RECTIFY

    def is_nonnegative(self, inputs: Sequence[bool]) -> bool:
        return True


@dataclass(frozen=True)
class Elementwise(Operation):
    """The same function of every single value: on codes, a table with one entry for each code.

    Attributes:
        name: name of the function.
        nonnegative: whether its values are never negative; None: they are not where the input is not.
    """

    name: str
    nonnegative: bool | None = False
    role: ClassVar[Role] = Role.ARITHMETIC

    def is_nonnegative(self, inputs: Sequence[bool]) -> bool:
        return all(inputs) if self.nonnegative is None else self.nonnegative
