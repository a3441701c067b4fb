"""Arithmetic of several tensors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from qat.operations.base import Operation, Role


@dataclass(frozen=True)
class Add(Operation):
    """a + b, with broadcasting."""

    role: ClassVar[Role] = Role.ARITHMETIC

    def is_nonnegative(self, inputs: Sequence[bool]) -> bool:
        return all(inputs)


@dataclass(frozen=True)
class Multiply(Operation):
    """a * b, with broadcasting."""

    role: ClassVar[Role] = Role.ARITHMETIC

    def is_nonnegative(self, inputs: Sequence[bool]) -> bool:
        return all(inputs) or (len(inputs) == 2 and self.inputs[0] is self.inputs[1])


@dataclass(frozen=True)
class MatMul(Operation):
    """The matrix product a @ b of two activations, over the last two axes, with broadcasting."""

    role: ClassVar[Role] = Role.ARITHMETIC

    def is_nonnegative(self, inputs: Sequence[bool]) -> bool:
        return all(inputs)


@dataclass(frozen=True)
class Concatenate(Operation):
    """The inputs joined along `dim`; stacked: along a new axis `dim`."""

    dim: int
    stacked: bool = False
    role: ClassVar[Role] = Role.ARITHMETIC

    def is_nonnegative(self, inputs: Sequence[bool]) -> bool:
        return all(inputs)
