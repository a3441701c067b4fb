"""Modules and graphs as plain data, and back, without executing anything that a file says."""

from qat.structure.graphs import build_graph, describe_graph
from qat.structure.modules import Description, ModuleBuilder, describe_architecture, describe_module, tensor_names
from qat.structure.names import Names, NotAllowedError
from qat.structure.results import build_result, describe_result
from qat.structure.values import Describer, NotPlainError

__all__ = [
    "Describer",
    "Description",
    "ModuleBuilder",
    "Names",
    "NotAllowedError",
    "NotPlainError",
    "build_graph",
    "build_result",
    "describe_architecture",
    "describe_graph",
    "describe_module",
    "describe_result",
    "tensor_names",
]
