"""Averages."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from qat.operations.base import Operation, Role


@dataclass(frozen=True)
class AveragePool(Operation):
    """Averages over windows of the last axes.

    Attributes:
        kernel, stride, padding: one number for each of the last axes.
        count_include_pad: whether padded zeros count.
    """

    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    count_include_pad: bool
    role: ClassVar[Role] = Role.ARITHMETIC

    def is_nonnegative(self, inputs: Sequence[bool]) -> bool:
        return all(inputs)


@dataclass(frozen=True)
class Mean(Operation):
    """The mean over whole axes.

    Attributes:
        dims: the axes, as written; negative ones count from the back.
        keepdim: whether they stay, with size 1.
        total: the sum instead of the mean.
    """

    dims: tuple[int, ...]
    keepdim: bool
    total: bool = False
    role: ClassVar[Role] = Role.ARITHMETIC

    def is_nonnegative(self, inputs: Sequence[bool]) -> bool:
        return all(inputs)
