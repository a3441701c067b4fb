"""Layers with a weight, and BatchNorm."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import fx, nn

from qat.nn import parameters_of_weight
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


def read_past_their_forward(network: nn.Module, graph: fx.Graph) -> set[str]:
    """The modules whose tensors are read by the graph itself, or by a layer that borrows them: they cannot change alone."""
    read = {str(node.target).rpartition(".")[0] for node in graph.nodes if node.op == "get_attr"}
    borrowing = [module for module in network.modules() if "lender" in vars(module)]
    lent = {id(p) for module in borrowing for p in (*parameters_of_weight(module), getattr(module, "bias", None))}
    return read | {name.rpartition(".")[0] for name, p in network.named_parameters() if id(p) in lent}
