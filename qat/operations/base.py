"""What all operations have in common."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import ClassVar

from torch import fx


class Role(Enum):
    """What an operation means to the tensors around it."""

    INPUT = "an argument of the network"
    OUTPUT = "what the network returns"
    CONSTANT = "a parameter or buffer, or calculated from such, from whole numbers and from sizes"
    SIZE = "a size, or a number calculated from sizes only; not a tensor"
    SITE = "an activation quantizer"
    LAYER = "has a weight that can be quantized"
    NORM = "a BatchNorm: part of the layer before it, or an affine function of each channel"
    RECTIFY = "a bound at 0 and perhaps above: part of the operation before it"
    MOVE = "its output lies on the grid of its input: moves, drops or repeats values, or takes their maximum"
    ARITHMETIC = "computes new values and has an integer form, if its inputs are quantized"
    PART = "one of several operations that compute a function of one tensor"
    FLOAT = "stays in float"


@dataclass(frozen=True)
class Operation:
    """One operation of a graph. Its arguments have been read; nothing else parses them.

    Attributes:
        inputs: the nodes whose tensors it reads, in order.
    """

    inputs: tuple[fx.Node, ...]
    role: ClassVar[Role] = Role.FLOAT

    def is_nonnegative(self, inputs: Sequence[bool]) -> bool:
        """Whether no value of the result is negative.

        Args:
            inputs: the same for each input.
        """
        return False


@dataclass(frozen=True)
class Input(Operation):
    """An argument of the network."""

    role: ClassVar[Role] = Role.INPUT


@dataclass(frozen=True)
class Output(Operation):
    """What the network returns."""

    role: ClassVar[Role] = Role.OUTPUT


@dataclass(frozen=True)
class Loss(Operation):
    """Part of a loss that forward calculates from labels, which is not deployed."""

    role: ClassVar[Role] = Role.OUTPUT


@dataclass(frozen=True)
class Constant(Operation):
    """A tensor that depends on no activation: a parameter, a buffer, a mask, or what is calculated from these."""

    role: ClassVar[Role] = Role.CONSTANT


@dataclass(frozen=True)
class Size(Operation):
    """A size, or a number calculated from sizes only.

    Attributes:
        of_type: whether it depends on the dtype of a tensor, which codes do not share with the floats that they stand for.
    """

    of_type: bool = False
    role: ClassVar[Role] = Role.SIZE


@dataclass(frozen=True)
class Site(Operation):
    """An activation quantizer in the graph."""

    role: ClassVar[Role] = Role.SITE

    def is_nonnegative(self, inputs: Sequence[bool]) -> bool:
        return all(inputs)


@dataclass(frozen=True)
class Float(Operation):
    """An operation that has no description of its own.

    Attributes:
        nonnegative: whether its result is never negative.
        elementwise: whether it is computed value by value.
    """

    nonnegative: bool = False
    elementwise: bool = False

    def is_nonnegative(self, inputs: Sequence[bool]) -> bool:
        return self.nonnegative
