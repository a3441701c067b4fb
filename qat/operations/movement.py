"""Operations whose output lies on the grid of their input."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from qat.operations.base import Operation, Role


@dataclass(frozen=True)
class Move(Operation):
    """Moves, drops or repeats values.

    Attributes:
        identity: whether it changes nothing in evaluation mode (dropout, contiguous).
        on_bytes: whether torch can do it on uint8 tensors.
        several: whether it returns several tensors.
        passes_numbers: whether it is a quantizer that only numbers reach.
    """

    identity: bool = False
    on_bytes: bool = True
    several: bool = False
    passes_numbers: bool = False
    role: ClassVar[Role] = Role.MOVE

    def is_nonnegative(self, inputs: Sequence[bool]) -> bool:
        return all(inputs)


@dataclass(frozen=True)
class PadZeros(Move):
    """Zeros around the tensor. pad: (before, behind) of the last axis, then of the last but one, ..."""

    pad: tuple[int, ...] = ()


@dataclass(frozen=True)
class AdaptiveMaxPool(Move):
    """Maxima over windows that divide the last axes into `size` parts."""

    size: tuple[int, ...] = ()


@dataclass(frozen=True)
class MaxPool(Move):
    """Maxima over windows of the last axes: the codes of the maxima are the maxima of the codes.

    Attributes:
        kernel, stride, padding, dilation: one number for each of the last axes.
        ceil_mode: whether windows may stick out at the end.
    """

    kernel: tuple[int, ...] = ()
    stride: tuple[int, ...] = ()
    padding: tuple[int, ...] = ()
    dilation: tuple[int, ...] = ()
    ceil_mode: bool = False
