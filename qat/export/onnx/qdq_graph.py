"""A graph in QDQ form: arithmetic stands between DequantizeLinear and QuantizeLinear."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from torch import fx

from qat.export.onnx.graph_writer import GraphWriter, NoOnnxFormError
from qat.export.onnx.tensor_names import TensorNames
from qat.integer import Encoding
from qat.operations import Operations
from qat.torch_private import tree_leaves


class Shape(tuple[int, ...]):
    """The shape of a tensor for the example inputs, and its free axes, whose sizes depend on the sizes of the inputs."""

    free: frozenset[int]

    @classmethod
    def of(cls, one: Sequence[int], other: Sequence[int]) -> Shape:
        """From the shapes for inputs of two sizes."""
        shape = cls(one)
        shape.free = frozenset(i for i, (a, b) in enumerate(zip(one, other, strict=True)) if a != b)
        return shape


class QdqGraph(GraphWriter):
    """A `GraphWriter` that knows which tensors of the file hold the outputs of which nodes.

    Args:
        shapes: shape of the output of every node that returns one tensor.
        operations: the description of every node.
        names: hands out names of tensors.
        packs_weights: as for `GraphWriter`.
    """

    def __init__(
        self,
        shapes: Mapping[fx.Node, Shape],
        operations: Operations | None = None,
        names: TensorNames | None = None,
        packs_weights: bool = True,
    ) -> None:
        super().__init__(names, packs_weights)
        self.shapes, self.operations = shapes, operations or {}
        self.names: dict[fx.Node, Any] = {}
        """Names of the tensors that hold a node's output, nested as the output is."""
        self.dynamic_qparams: dict[str, list[str]] = {}
        """Codes on a range of their own -> the names of their scale and zero-point."""
        self._dequantized: dict[tuple[str, Encoding], str] = {}

    def input(self, node: fx.Node) -> str:
        """The name of the node's first input."""
        name: str = self.names[node.all_input_nodes[0]]
        return name

    def inputs(self, node: fx.Node) -> list[str]:
        """The names of all inputs that are tensors, in order; sizes are not."""
        return [self.names[n] for n in node.all_input_nodes if n in self.names]

    def input_shape(self, node: fx.Node) -> Shape:
        """The shape of the node's first input."""
        return self.shapes[node.all_input_nodes[0]]

    def dequantized(self, codes: str, encoding: Encoding) -> str:
        """The float view of a uint8 tensor; all its readers share one DequantizeLinear."""
        if (codes, encoding) not in self._dequantized:
            real = self.node("DequantizeLinear", [codes, *self._qparams(encoding)], f"{codes}_dq")
            self._dequantized[codes, encoding] = real
        return self._dequantized[codes, encoding]

    def _take_back(self, nodes: int, constants: int) -> None:
        super()._take_back(nodes, constants)
        written = {output for node in self.nodes for output in node.output}
        self._dequantized = {key: name for key, name in self._dequantized.items() if name in written}

    def reads_dequantized(self, node: fx.Node) -> bool:
        """Whether an input of the node is the output of a DequantizeLinear."""
        return self.is_dequantized(name for n in node.all_input_nodes for name in tree_leaves(self.names.get(n)))

    def is_dequantized(self, tensors: Iterable[Any]) -> bool:
        """Whether one of these is the name of the output of a DequantizeLinear."""
        views = set(self._dequantized.values())
        return any(name in views for name in tensors)

    def quantized(self, real: str, encoding: Encoding, name: str) -> str:
        """QuantizeLinear, followed by a uint8 Clip unless saturation at 0 and 255 is the bound."""
        if encoding.lowest == 0 and encoding.highest == 255:
            return self.node("QuantizeLinear", [real, *self._qparams(encoding)], name)
        wide = self.node("QuantizeLinear", [real, *self._qparams(encoding)], f"{name}_wide")
        bounds = [self.constant(np.array(b, dtype=np.uint8)) for b in (encoding.lowest, encoding.highest)]
        return self.node("Clip", [wide, *bounds], name)

    def _qparams(self, encoding: Encoding) -> list[str]:
        scale = self.constant(np.array(encoding.scale, dtype=np.float32))
        return [scale, self.constant(np.array(encoding.zero_point, dtype=np.uint8))]

    def reshape(self, tensor: str, shape: tuple[int, ...], name: str, like: str = "") -> str:
        """Reshape to `shape`, with its free axes: the first one, if it is a plain tuple.

        Args:
            tensor: name of the tensor.
            shape: the shape to get.
            name: name of the result.
            like: name of a tensor that has the same sizes in all axes but the last; needed if several axes are free.

        Raises:
            NoOnnxFormError: several axes are free, and there is no such tensor.
        """
        free = shape.free if isinstance(shape, Shape) else frozenset({0})
        if len(free) < 2:
            (axis,) = free or {0}
            target = self.constant(np.array([-1 if i == axis else n for i, n in enumerate(shape)], dtype=np.int64))
        elif like and free <= set(range(len(shape) - 1)):
            sizes = self.node("Shape", [like], f"{name}_sizes", end=len(shape) - 1)
            last = self.constant(np.array(shape[-1:], dtype=np.int64))
            target = self.node("Concat", [sizes, last], f"{name}_shape", axis=0)
        else:
            raise NoOnnxFormError("reshape", name)
        return self.node("Reshape", [tensor, target], name)

    def unchanged(self, tensor: str, name: str) -> str:
        """A LeakyRelu with slope 1: it changes nothing, but keeps the runtime from fusing across it."""
        return self.node("LeakyRelu", [tensor], name, alpha=1.0)


def tensor_name(node: fx.Node) -> str:
    """The name of the tensor a node makes: sites and layers keep their name; no other node can have it."""
    return str(node.target) if node.op == "call_module" else f"{node.name}.{node.op}"
