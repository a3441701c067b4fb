"""A graph in QDQ form: arithmetic stands between DequantizeLinear and QuantizeLinear."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from torch import fx

from qat.export.onnx.graph_writer import GraphWriter
from qat.integer import Encoding
from qat.operations import Operations
from qat.torch_private import tree_leaves


class QdqGraph(GraphWriter):
    """A `GraphWriter` that knows which tensors of the file hold the outputs of which nodes.

    Args:
        shapes: shape of the output of every node that returns one tensor.
        operations: the description of every node.
    """

    def __init__(self, shapes: Mapping[fx.Node, tuple[int, ...]], operations: Operations) -> None:
        super().__init__()
        self.shapes, self.operations = shapes, operations
        self.names: dict[fx.Node, Any] = {}
        """Names of the tensors that hold a node's output, nested as the output is."""
        self._dequantized: dict[tuple[str, Encoding], str] = {}

    def input(self, node: fx.Node) -> str:
        """The name of the node's first input."""
        name: str = self.names[node.all_input_nodes[0]]
        return name

    def inputs(self, node: fx.Node) -> list[str]:
        """The names of all inputs that are tensors, in order; sizes are not."""
        return [self.names[n] for n in node.all_input_nodes if n in self.names]

    def input_shape(self, node: fx.Node) -> tuple[int, ...]:
        """The shape of the node's first input."""
        return self.shapes[node.all_input_nodes[0]]

    def dequantized(self, codes: str, encoding: Encoding) -> str:
        """The float view of a uint8 tensor; all its readers share one DequantizeLinear."""
        if (codes, encoding) not in self._dequantized:
            real = self.node("DequantizeLinear", [codes, *self._qparams(encoding)], f"{codes}_dq")
            self._dequantized[codes, encoding] = real
        return self._dequantized[codes, encoding]

    def reads_dequantized(self, node: fx.Node) -> bool:
        """Whether an input of the node is the output of a DequantizeLinear."""
        views = self._dequantized.values()
        return any(name in views for n in node.all_input_nodes for name in tree_leaves(self.names.get(n)))

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

    def reshape(self, tensor: str, shape: tuple[int, ...], name: str) -> str:
        """Reshape to `shape`, with a free first axis."""
        target = self.constant(np.array([-1, *shape[1:]], dtype=np.int64))
        return self.node("Reshape", [tensor, target], name)

    def unchanged(self, tensor: str, name: str) -> str:
        """A LeakyRelu with slope 1: it changes nothing, but keeps the runtime from fusing across it."""
        return self.node("LeakyRelu", [tensor], name, alpha=1.0)


def tensor_name(node: fx.Node) -> str:
    """The name of the tensor a node makes: sites and layers keep their name; no other node can have it."""
    return str(node.target) if node.op == "call_module" else f"{node.name}.{node.op}"
