"""From an integer model to a torch module of `quantized_decomposed` operations: PyTorch 2 export quantization (PT2E)."""

from __future__ import annotations

import copy
import operator
from collections.abc import Callable

from torch import fx, nn

from qat.arguments import check_flag
from qat.export.comparison import with_graph
from qat.export.onnx.example_inputs import in_float32
from qat.export.pt2e import layers, modules
from qat.integer import Encoding
from qat.integer import layers as integer_layers
from qat.integer import modules as integer_modules
from qat.integer.modules import IntegerModule
from qat.operations import Role, describe_graph

DEPENDENT: dict[type[nn.Module], Callable[..., nn.Module]] = {
    integer_layers.IntegerConv: layers.Convolution,
    integer_layers.IntegerConvTranspose: layers.TransposedConvolution,
    integer_layers.IntegerLinear: layers.Linear,
    integer_modules.IntegerCat: modules.Cat,
    integer_modules.Requantize: modules.Requantize,
}
"""Integer module -> its form, which depends on `for_litert`."""
OPERATIONS: dict[type[nn.Module], Callable[..., nn.Module]] = {
    integer_modules.Quantize: lambda module: modules.Quantize(module.output),
    integer_modules.Dequantize: lambda module: modules.Dequantize(module.input),
    integer_modules.LookUp: modules.LookUp,
    integer_modules.IntegerAdd: modules.OfTwo,
    integer_modules.IntegerMultiply: modules.OfTwo,
    integer_modules.IntegerMatMul: modules.OfTwo,
    integer_modules.IntegerMean: modules.Mean,
    integer_modules.IntegerAveragePool: modules.AveragePool,
    integer_modules.IntegerMaxPool: modules.MaxPool,
    integer_modules.IntegerPad: modules.Pad,
}


def to_pt2e(integer: nn.Module, for_litert: bool = False) -> fx.GraphModule:
    """An integer model as a module that torch.export understands, and the tools behind it: ExecuTorch, LiteRT.

    Activations are int8 codes, which are those of the integer model less 128, and weights int8 codes with a scale for each
    channel. An operation is written dequantize - float operation - quantize; backends fuse that into an integer kernel. torch
    computes it in float32, so that a code may differ by one step from the integer model's, where a sum lies near the middle
    between two. Look-ups are integers. What the integer model leaves in float stays as it is, as do dynamic ranges and layers
    whose weights alone are integers.

    Args:
        integer: the result of `qat.convert`, of a network with a graph. It is not changed.
        for_litert: what litert-torch wants: weights as floats on their grid that are quantized in the graph, which it folds
            itself, and concatenations of several grids, which it requantizes itself.

    Returns:
        A module with the arguments and outputs of `integer`; the submodule of a site has the site's name and returns its codes.

    Raises:
        ValueError: this is not an integer model with a graph.
    """
    check_flag("for_litert", for_litert)
    return _Builder(in_float32(with_graph(integer)), for_litert).build()


class _Builder:
    """Copies a graph node by node, with PT2E forms in place of integer modules; what moves codes moves floats instead."""

    def __init__(self, integer: fx.GraphModule, for_litert: bool) -> None:
        self.integer, self.for_litert = integer, for_litert
        self.operations = describe_graph(integer, integer.graph)
        self.root, self.graph = nn.Module(), fx.Graph()
        self.new: dict[fx.Node, fx.Node] = {}
        self.names: dict[str, str] = {}
        """Old module -> the name of its form."""
        self.encodings: dict[fx.Node, Encoding] = {}
        """Old node -> how its codes are read."""
        self.moving: dict[fx.Node, Encoding] = {}
        """Old node -> the grid of the floats, or of the list of floats, that stands for its codes."""

    def build(self) -> fx.GraphModule:
        for node in self.integer.graph.nodes:
            self.new[node] = self._copy(node)
        self.graph.lint()
        return fx.GraphModule(self.root, self.graph, f"Pt2e{type(self.integer).__name__}").eval()

    def _copy(self, node: fx.Node) -> fx.Node:
        if node.op == "get_attr":
            value = operator.attrgetter(str(node.target))(self.integer)
            self.root.register_buffer(str(node.target), value.detach().clone())
        if node.op == "call_module" and isinstance(module := self._module(node), IntegerModule):
            if module.output is not None:
                self.encodings[node] = module.output
            return self._call(node, module)
        reads_codes = any(n in self.encodings or n in self.moving for n in node.all_input_nodes)
        if reads_codes and self.operations[node].role is not Role.SIZE:
            return self._move(node)
        if node.op == "call_module":
            return self._call(node, self._module(node))
        return self.graph.node_copy(node, self.new.__getitem__)

    def _module(self, node: fx.Node) -> nn.Module:
        return self.integer.get_submodule(str(node.target))

    def _call(self, node: fx.Node, module: nn.Module) -> fx.Node:
        """Call the form of a module, which is made at its first call."""
        target = str(node.target)
        if target not in self.names:
            self.names[target] = self._add(target.replace(".", "_"), self._form(node, module))
        new = self.graph.node_copy(node, self.new.__getitem__)
        new.target = self.names[target]
        return new

    def _form(self, node: fx.Node, module: nn.Module) -> nn.Module:
        """What computes in a module's place."""
        if self.for_litert and isinstance(module, integer_modules.LookUp):
            return modules.FloatLookUp(module, self.encodings[node.all_input_nodes[0]])
        if type(module) in DEPENDENT:
            return DEPENDENT[type(module)](module, self.for_litert)
        return OPERATIONS.get(type(module), copy.deepcopy)(module)

    def _move(self, node: fx.Node) -> fx.Node:
        """Move values instead of codes: torch and backends know the operation on floats alone."""
        source = next(n for n in node.all_input_nodes if n in self.encodings or n in self.moving)
        encoding = self.encodings.get(source) or self.moving[source]
        moved = self._of_floats(node)
        if self._stays_float(node):
            self.moving[node] = encoding
            return moved
        self.encodings[node] = encoding
        return self._insert(f"{node.name}_codes", modules.Quantize(encoding), moved)

    def _of_floats(self, node: fx.Node) -> fx.Node:
        real = {
            n: self._insert(f"{n.name}_moved", modules.Dequantize(self.encodings[n]), self.new[n])
            if n in self.encodings
            else self.new[n]
            for n in node.all_input_nodes
        }
        if node.op == "call_method" and node.target in ("float", "to"):  # between codes and floats of whole numbers
            return real[node.all_input_nodes[0]]
        if node.op == "call_module":
            new = self._call(node, self._module(node))
            new.args, new.kwargs = fx.map_arg((node.args, node.kwargs), real.__getitem__)
            return new
        return self.graph.node_copy(node, real.__getitem__)

    def _insert(self, name: str, module: nn.Module, argument: fx.Node) -> fx.Node:
        """Call a new module."""
        return self.graph.call_module(self._add(name, module), (argument,))

    def _add(self, name: str, module: nn.Module) -> str:
        """Add a module. Returns its name, with underscores behind it if another one has that name."""
        while hasattr(self.root, name):
            name += "_"
        self.root.add_module(name, module)
        return name

    def _stays_float(self, node: fx.Node) -> bool:
        """Whether the result has no codes yet: it is a list, or will be cast to codes again."""
        if node.op == "call_method" and node.target == "to":
            return False
        returns_several = getattr(self.operations[node], "several", False)
        in_float = any(n in self.moving for n in node.all_input_nodes) and node.target is not operator.getitem
        return returns_several or in_float or (node.op == "call_method" and node.target == "float")
