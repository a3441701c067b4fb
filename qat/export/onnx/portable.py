"""Plain QDQ: arithmetic and moves alike stand between DequantizeLinear and QuantizeLinear, and weights are int8.

ONNX Runtime moves codes as they are, reads INT4 and INT2, and takes a missing zero-point for 0. Others (QNN, tract, IREE,
OpenVINO) do not; they recognise an operation by the DequantizeLinear before it and the QuantizeLinear behind it. Moving a value
that lies on a grid and rounding it to the same grid again gives the code that was moved, so that not one code changes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from qat.export.onnx.tensor_names import TensorNames
from qat.integer import Encoding

OLDEST_OPSET = 13
"""The oldest opset with scales per channel."""
NOT_MOVES = {"Cast", "ConvInteger", "DequantizeLinear", "MatMulInteger", "Shape", "Size"}
"""Operators that read codes, and whose results are not codes of the same grid."""
CHANGED_MEANING = {"GridSample", "GroupNormalization"}
"""Operators whose older versions take the same arguments and mean something else."""


def make_portable(model: onnx.ModelProto, encodings: Mapping[str, Encoding]) -> None:
    """Rewrite a file in the dialect of ONNX Runtime, in place. Names of sites, inputs and outputs stay.

    Args:
        model: the file.
        encodings: of the codes of its sites, by the names of their tensors.
    """
    rewriter = Rewriter(model, encodings)
    rewriter.wrap_moves()
    rewriter.write_zero_points()
    rewriter.finish()


class Rewriter:
    """Changes a graph in place.

    Args:
        model: the file.
        encodings: of the codes of its sites, by the names of their tensors.
    """

    def __init__(self, model: onnx.ModelProto, encodings: Mapping[str, Encoding]) -> None:
        self.model, self.graph = model, model.graph
        self.constants = {t.name: t for t in self.graph.initializer}
        taken = {name for node in self.graph.node for name in (*node.input, *node.output)} | set(self.constants)
        self.names = TensorNames(sorted(taken))
        self.grids = self._grids(encodings)
        """Tensor of codes -> (scale, zero-point), of all tensors on a fixed grid."""
        self.on_grid: set[str] = set()
        """Codes of values that lie on their grid already, so that quantizing them neither rounds nor saturates."""

    def _grids(self, encodings: Mapping[str, Encoding]) -> dict[str, tuple[str, str]]:
        """The grids of what is quantized, looked up or dequantized, and of what is moved before or behind it."""
        grids: dict[str, tuple[str, str]] = {}
        made: set[str] = set()  # by tables and casts
        for node in self.graph.node:
            first = node.input[0] if node.input else ""
            if node.op_type == "QuantizeLinear":
                grids[node.output[0]] = (node.input[1], node.input[2])
            elif node.op_type == "DequantizeLinear" and first not in self.constants and len(node.input) == 3:
                if set(node.input[1:]) <= set(self.constants):  # a range that is fixed
                    grids.setdefault(first, (node.input[1], node.input[2]))
            elif self._makes_codes(node):
                made |= set(node.output)
                if node.output[0] in encodings:
                    grids[node.output[0]] = self._constants(node.output[0], encodings[node.output[0]])
        self._follow_moves(grids, made)
        return grids

    def _follow_moves(self, grids: dict[str, tuple[str, str]], made: set[str]) -> None:
        """Give codes that are moved the grid of where they come from, or, if they are of `made`, of where they go to."""
        moves = [node for node in self.graph.node if node.op_type not in NOT_MOVES]
        for node in moves:
            if not made.isdisjoint(node.input):
                made |= set(node.output)
            source = next((name for name in node.input if name in grids), None)
            if source is not None:
                for name in filter(None, node.output):
                    grids.setdefault(name, grids[source])
        for node in reversed(moves):
            behind = next((grids[name] for name in node.output if name in grids), None)
            if behind is not None:
                grids.update({name: grids.get(name, behind) for name in node.input if name in made})

    def _constants(self, name: str, encoding: Encoding) -> tuple[str, str]:
        scale, zero_point = np.array(encoding.scale, dtype=np.float32), np.array(encoding.zero_point, dtype=np.uint8)
        return self.constant(scale, f"{name}_scale"), self.constant(zero_point, f"{name}_zero_point")

    def _makes_codes(self, node: onnx.NodeProto) -> bool:
        """Whether a node makes codes in another way than by QuantizeLinear."""
        if node.op_type == "Cast":
            return any(a.name == "to" and a.i == TensorProto.UINT8 for a in node.attribute)
        return node.op_type == "Gather" and self._type(node.input[0]) == TensorProto.UINT8

    def _type(self, name: str) -> int | None:
        return self.constants[name].data_type if name in self.constants else None

    def value(self, name: str) -> NDArray[Any]:
        """The value of a constant."""
        array: NDArray[Any] = numpy_helper.to_array(self.constants[name])
        return array

    def constant(self, value: NDArray[Any], name: str) -> str:
        """Add a constant; returns its name."""
        tensor = numpy_helper.from_array(value, self.names.new(name))
        self.constants[tensor.name] = tensor
        return str(tensor.name)

    def real(self, codes: str, grid: tuple[str, str]) -> NDArray[Any]:
        """The float32 values of constant codes on a grid."""
        scale, zero_point = self.value(grid[0]), self.value(grid[1]).astype(np.float32)
        return np.asarray((self.value(codes).astype(np.float32) - zero_point) * scale, dtype=np.float32)

    def wrap_moves(self) -> None:
        """Put DequantizeLinear before every operator that moves codes, and QuantizeLinear behind it."""
        nodes: list[onnx.NodeProto] = []
        for node in self.graph.node:
            if node.op_type not in NOT_MOVES and any(name in self.grids for name in node.input):
                nodes += self._wrapped(node)
            else:
                nodes.append(node)
        self.replace(nodes)

    def replace(self, nodes: Sequence[onnx.NodeProto]) -> None:
        """Put these nodes in place of the graph's, of which they may be part."""
        copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
        del self.graph.node[:]
        self.graph.node.extend(copies)

    def _wrapped(self, node: onnx.NodeProto) -> Iterator[onnx.NodeProto]:
        grid = next(self.grids[name] for name in node.input if name in self.grids)
        for i, name in enumerate(node.input):
            if name in self.grids:
                node.input[i] = self.names.new(f"{name}_moved")
                yield helper.make_node("DequantizeLinear", [name, *self.grids[name]], [node.input[i]], node.input[i])
            elif self._type(name) == TensorProto.UINT8:
                node.input[i] = self.constant(self.real(name, grid), f"{name}_real")
        codes = list(node.output)
        node.output[:] = [self.names.new(f"{name}_real") if name else "" for name in codes]
        node.name = next(filter(None, node.output))
        yield node
        for real, name in zip(node.output, codes, strict=True):
            if name:
                if node.op_type != "Clip":
                    self.on_grid.add(name)
                yield helper.make_node("QuantizeLinear", [real, *grid], [name], name)

    def write_zero_points(self) -> None:
        """Write the zero-points that were left out because they are 0. Each has its own: runtimes may rewrite them."""
        for node in self.graph.node:
            if node.op_type == "DequantizeLinear" and len(node.input) == 2 and node.input[0] in self.constants:
                codes, scale = (self.value(name) for name in node.input)
                node.input.append(self.constant(np.zeros(scale.shape, codes.dtype), f"{node.input[0]}_zero_point"))

    def finish(self) -> None:
        """Leave out constants that nothing reads, declare the oldest opset that has the operators, and check the file."""
        read = {name for node in self.graph.node for name in node.input}
        del self.graph.initializer[:]
        self.graph.initializer.extend(t for name, t in self.constants.items() if name in read)
        (standard,) = (entry for entry in self.model.opset_import if not entry.domain)
        newest = standard.version
        for opset in range(OLDEST_OPSET, newest + 1):
            if all(_is_valid(node, opset, newest) for node in self.graph.node):
                standard.version = opset
                self.model.ir_version = helper.find_min_ir_version_for(list(self.model.opset_import))
                try:
                    onnx.checker.check_model(self.model, full_check=True)
                except onnx.shape_inference.InferenceError:  # a type that the operator has in later opsets
                    if opset == newest:
                        raise
                else:
                    return


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
