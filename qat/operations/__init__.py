"""What the nodes of a graph compute: one frozen description for each, whatever its spelling."""

from qat.operations.activations import Elementwise, Rectify
from qat.operations.arithmetic import Add, Concatenate, MatMul, Multiply
from qat.operations.base import Constant, Float, Input, Operation, Output, Role, Site, Size
from qat.operations.call import Call, call_of, is_of_torch, operation_name
from qat.operations.describe import Operations, describe_graph
from qat.operations.fixed_arguments import CHECKS, PLAIN, check_fixed_argument, check_given_argument, is_fixed
from qat.operations.integer_form import (
    can_take_codes,
    computes_products,
    has_integer_form,
    is_computed_on_codes,
    tensors_with_codes,
)
from qat.operations.labels import is_label, loss_nodes, reached_by_labels, without_labels
from qat.operations.layers import BatchNormalization, Layer, has_form_alone, read_past_their_forward
from qat.operations.movement import AdaptiveMaxPool, MaxPool, Move, PadZeros
from qat.operations.pooling import AveragePool, Mean
from qat.operations.regions import Part, Region
from qat.operations.sizes import check_sizes, value_of

__all__ = [
    "CHECKS",
    "PLAIN",
    "AdaptiveMaxPool",
    "Add",
    "AveragePool",
    "BatchNormalization",
    "Call",
    "Concatenate",
    "Constant",
    "Elementwise",
    "Float",
    "Input",
    "Layer",
    "MatMul",
    "MaxPool",
    "Mean",
    "Move",
    "Multiply",
    "Operation",
    "Operations",
    "Output",
    "PadZeros",
    "Part",
    "Rectify",
    "Region",
    "Role",
    "Site",
    "Size",
    "call_of",
    "can_take_codes",
    "check_fixed_argument",
    "check_given_argument",
    "check_sizes",
    "computes_products",
    "describe_graph",
    "has_form_alone",
    "has_integer_form",
    "is_computed_on_codes",
    "is_fixed",
    "is_label",
    "is_of_torch",
    "loss_nodes",
    "operation_name",
    "reached_by_labels",
    "read_past_their_forward",
    "tensors_with_codes",
    "value_of",
    "without_labels",
]
