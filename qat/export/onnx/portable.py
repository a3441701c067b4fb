"""Plain QDQ: arithmetic and moves alike stand between DequantizeLinear and QuantizeLinear, and weights are int8.

ONNX Runtime moves codes as they are, reads INT4 and INT2, and takes a missing zero-point for 0. Others (QNN, tract, IREE,
OpenVINO) do not; they recognise an operation by the DequantizeLinear before it and the QuantizeLinear behind it. Moving a value
that lies on a grid and rounding it to the same grid again gives the code that was moved, so that not one code changes.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from qat.export.onnx.tensor_names import TensorNames

OLDEST_OPSET = 13
"""The oldest with scales per channel."""
NOT_MOVES = {"Cast", "ConvInteger", "DequantizeLinear", "MatMulInteger", "Shape", "Size"}
"""Operators that read codes, and whose results are not codes of the same grid."""
CHANGED_MEANING = {"GridSample", "GroupNormalization"}
"""Operators whose older versions take the same arguments and mean something else."""


def make_portable(model: onnx.ModelProto) -> None:
    """Rewrite a file in the dialect of ONNX Runtime, in place. Names of sites, inputs and outputs stay."""
    rewriter = Rewriter(model)
    rewriter.wrap_moves()
    rewriter.write_zero_points()
    rewriter.finish()


class Rewriter:
    """Changes a graph in place.

    Args:
        model: the file.
    """

    def __init__(self, model: onnx.ModelProto) -> None:
        self.model, self.graph = model, model.graph
        self.constants = {t.name: t for t in self.graph.initializer}
        taken = {name for node in self.graph.node for name in (*node.input, *node.output)} | set(self.constants)
        self.names = TensorNames(sorted(taken))
        self.grids = _grids(self.graph)

    def value(self, name: str) -> NDArray[Any]:
        """The value of a constant."""
        array: NDArray[Any] = numpy_helper.to_array(self.constants[name])
        return array

    def constant(self, value: NDArray[Any], name: str) -> str:
        """Add a constant; returns its name."""
        tensor = numpy_helper.from_array(value, self.names.new(name))
        self.constants[tensor.name] = tensor
        return str(tensor.name)

    def wrap_moves(self) -> None:
        """Put DequantizeLinear before every operator that moves codes, and QuantizeLinear behind it."""
        nodes: list[onnx.NodeProto] = []
        for node in self.graph.node:
            if node.op_type not in NOT_MOVES and any(name in self.grids for name in node.input):
                nodes += self._wrapped(node)
            else:
                nodes.append(node)
        del self.graph.node[:]
        self.graph.node.extend(nodes)

    def _wrapped(self, node: onnx.NodeProto) -> Iterator[onnx.NodeProto]:
        grid = next(self.grids[name] for name in node.input if name in self.grids)
        for i, name in enumerate(node.input):
            if name in self.grids:
                node.input[i] = self.names.new(f"{name}_moved")
                yield helper.make_node("DequantizeLinear", [name, *self.grids[name]], [node.input[i]], node.input[i])
            elif name in self.constants and self.constants[name].data_type == TensorProto.UINT8:
                node.input[i] = self.constant(self._real(name, grid), f"{name}_real")
        codes = list(node.output)
        node.output[:] = [self.names.new(f"{name}_real") if name else "" for name in codes]
        node.name = next(filter(None, node.output))
        yield node
        for real, name in zip(node.output, codes, strict=True):
            if name:
                yield helper.make_node("QuantizeLinear", [real, *grid], [name], name)

    def _real(self, codes: str, grid: tuple[str, str]) -> NDArray[Any]:
        scale, zero_point = self.value(grid[0]), self.value(grid[1]).astype(np.float32)
        return np.asarray((self.value(codes).astype(np.float32) - zero_point) * scale, dtype=np.float32)

    def write_zero_points(self) -> None:
        """Write the zero-points that were left out because they are 0. Each has its own: runtimes may rewrite them."""
        for node in self.graph.node:
            if node.op_type == "DequantizeLinear" and len(node.input) == 2 and node.input[0] in self.constants:
                codes, scale = (self.value(name) for name in node.input)
                node.input.append(self.constant(np.zeros(scale.shape, codes.dtype), f"{node.input[0]}_zero_point"))

    def finish(self) -> None:
        """Leave out what nothing reads, say that the file is of the oldest opset that has its operators, and check it."""
        read = {name for node in self.graph.node for name in node.input}
        del self.graph.initializer[:]
        self.graph.initializer.extend(t for name, t in self.constants.items() if name in read)
        newest = next(o.version for o in self.model.opset_import if not o.domain)
        for opset in range(OLDEST_OPSET, newest + 1):
            if all(_is_valid(node, opset, newest) for node in self.graph.node):
                break
        for entry in self.model.opset_import:
            if not entry.domain:
                entry.version = opset
        self.model.ir_version = helper.find_min_ir_version_for(list(self.model.opset_import))
        onnx.checker.check_model(self.model, full_check=True)


def _grids(graph: onnx.GraphProto) -> dict[str, tuple[str, str]]:
    """Tensor of codes -> (scale, zero-point), of all tensors on a fixed grid."""
    constants = {t.name for t in graph.initializer}
    grids: dict[str, tuple[str, str]] = {}
    for node in graph.node:  # results of look-ups, too, are read by a DequantizeLinear
        if node.op_type in ("QuantizeLinear", "DequantizeLinear") and set(node.input[1:]) <= constants:
            codes = node.output[0] if node.op_type == "QuantizeLinear" else node.input[0]
            if codes not in constants and len(node.input) == 3:
                grids[codes] = (node.input[1], node.input[2])
    for node in graph.node:
        source = next((name for name in node.input if name in grids), None)
        if source is not None and node.op_type not in NOT_MOVES:
            for name in filter(None, node.output):
                grids.setdefault(name, grids[source])
    return grids


def _is_valid(node: onnx.NodeProto, opset: int, newest: int) -> bool:
    """Whether an operator takes the same attributes and inputs in an older opset."""
    if node.domain:
        return True
    try:
        schema = onnx.defs.get_schema(node.op_type, opset)
    except onnx.defs.SchemaError:
        return False
    if node.op_type in CHANGED_MEANING:
        return bool(schema.since_version == onnx.defs.get_schema(node.op_type, newest).since_version)
    attributes = {a.name for a in node.attribute} <= set(schema.attributes)
    return attributes and schema.min_input <= len(node.input) <= schema.max_input
