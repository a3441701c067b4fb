"""Layers with a weight, and BatchNorm."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from qat.operations.base import Operation, Role


@dataclass(frozen=True)
class Layer(Operation):
    """A convolution, a linear layer or an embedding.

    Attributes:
        module: the layer.
        takes_indices: whether its input is indices, which are never quantized.
    """

    module: nn.Module
    takes_indices: bool = False
    role: ClassVar[Role] = Role.LAYER


@dataclass(frozen=True)
class BatchNormalization(Operation):
    """BatchNorm over axis 1. module: the BatchNorm, with running statistics."""

    module: nn.Module
    role: ClassVar[Role] = Role.NORM


def has_form_alone(operation: Operation) -> bool:
    """Whether this is a BatchNorm with an integer form of its own: a depthwise convolution of 1 x 1."""
    return isinstance(operation, BatchNormalization) and isinstance(operation.module, nn.BatchNorm2d)
