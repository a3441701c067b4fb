"""Rebuild the graph of a prepared model with integer modules."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from qat.integer.arithmetic import Encoding
from qat.integer.convert_layer import dynamic_layer, has_integer_form, integer_layer, weight_only_layer
from qat.integer.integer_model import IntegerModel
from qat.integer.modules import (
    Dequantize,
    DynamicQuantize,
    IntegerAdd,
    IntegerAveragePool,
    IntegerCat,
    IntegerGlobalAverage,
    IntegerMaxPool,
    IntegerPad,
    LookUp,
    Quantize,
    Requantize,
)
from qat.nn import is_identity_in_evaluation
from qat.quantizers import Dynamic, LookupTable, Quantizer
from qat.transform.operation_kind import (
    OperationKind,
    kind_of,
    mean_axes,
    relu_upper_bound,
)


class GraphConverter:
    """Rebuilds a graph from its output back to its inputs: each tensor as codes, as float, or both, as its readers need it.

    Args:
        source: the prepared model. It is taken apart: layers left in float move into the new model.
        graph: its graph.
    """

    def __init__(self, source: nn.Module, graph: fx.Graph) -> None:
        self.source, self.graph = source, graph
        self.root, self.new_graph = nn.Module(), fx.Graph()
        self.kinds = {node: kind_of(source, node) for node in graph.nodes}
        self.as_codes: dict[fx.Node, fx.Node] = {}
        self.as_float: dict[fx.Node, fx.Node] = {}
        self.as_dynamic_codes: dict[fx.Node, fx.Node] = {}
        self.encodings: dict[fx.Node, Encoding] = {}
        """How the codes of an old tensor in `as_codes` are read."""

    def convert(self) -> IntegerModel:
        """Build the integer model."""
        output = None
        for node in self.graph.nodes:
            if node.op == "placeholder":
                self.as_float[node] = self.new_graph.placeholder(
                    node.target, default_value=node.args[0] if node.args else inspect.Parameter.empty
                )
            elif node.op == "output":
                output = fx.map_arg(node.args[0], self.float_value)
        self.new_graph.output(output)
        self.new_graph.lint()
        return IntegerModel(self.root, self.new_graph, f"Integer{type(self.source).__name__}").eval()

    def module(self, node: fx.Node) -> nn.Module:
        """The module that an old node calls."""
        return self.source.get_submodule(str(node.target))

    def has_codes(self, node: fx.Node) -> bool:
        """Whether the tensor lies on a grid that is fixed before the tensor is known."""
        kind = self.kinds[node]
        return (kind is OperationKind.SITE and not self.is_dynamic(node)) or (
            kind is OperationKind.SAME and self.has_codes(node.all_input_nodes[0])
        )

    def is_dynamic(self, node: fx.Node) -> bool:
        """Whether the node is a site that quantizes each tensor on its own range."""
        return self.kinds[node] is OperationKind.SITE and isinstance(self.module(node), Dynamic)

    def call(self, name: str, module: nn.Module, arguments: tuple[Any, ...]) -> fx.Node:
        """Add a module, named after the site or layer that it computes, and a call of it."""
        name = name.replace(".", "_")
        while hasattr(self.root, name):
            name += "_"
        self.root.add_module(name, module)
        return self.new_graph.call_module(name, arguments)

    # Codes -----------------------------------------------------------------------------------------------------------

    def codes(self, node: fx.Node) -> fx.Node:
        """The new node that holds the uint8 codes of an old tensor; `self.encodings` says how they are read."""
        if node not in self.as_codes:
            is_site = self.kinds[node] is OperationKind.SITE
            self.as_codes[node], self.encodings[node] = self._site(node) if is_site else self._data_movement(node)
        return self.as_codes[node]

    def _site(self, site: fx.Node) -> tuple[fx.Node, Encoding]:
        quantizer = self.module(site)
        assert isinstance(quantizer, Quantizer)
        encoding, table = Encoding.of_quantizer(quantizer), quantizer.lookup_table()
        if table is None:
            return self._quantized(site, quantizer.label, encoding)
        fine = Encoding.of_grid(table.grid, table.qparams)
        codes, _ = self._quantized(site, f"{quantizer.label}_fine", fine)
        return self.call(quantizer.label, LookUp(_stored_table(table, fine, encoding), encoding), (codes,)), encoding

    def _quantized(self, site: fx.Node, name: str, encoding: Encoding) -> tuple[fx.Node, Encoding]:
        """The codes of a site, and their encoding, whose bounds a fused ReLU narrows."""
        end = source = site.all_input_nodes[0]
        if self.has_codes(source):
            return self._requantized(source, name, encoding), encoding
        if self.kinds[end] is OperationKind.RECTIFY:
            encoding = encoding.after_relu(relu_upper_bound(self.source, end))
            source = end.all_input_nodes[0]
            if self.has_codes(source):
                return self._requantized(source, name, encoding), encoding
        norm = source if self.kinds[source] is OperationKind.NORM else None
        head = source if norm is None else source.all_input_nodes[0]
        inputs = head.all_input_nodes
        if self.kinds[head] is OperationKind.COMPUTE and self._computes_on_codes(head):
            return self._integer_layer(name, head, norm, encoding), encoding
        if norm is None and inputs and all(self.has_codes(n) for n in inputs):
            codes = self._integer_arithmetic(name, head, inputs, encoding)
            if codes is not None:
                return codes, encoding
        return self.call(name, Quantize(encoding), (self.float_value(end),)), encoding

    def _requantized(self, source: fx.Node, name: str, encoding: Encoding) -> fx.Node:
        codes = self.codes(source)
        return self.call(name, Requantize(self.encodings[source], encoding), (codes,))

    def _integer_arithmetic(
        self, name: str, node: fx.Node, inputs: list[fx.Node], encoding: Encoding
    ) -> fx.Node | None:
        """Addition, concatenation or pooling on codes; None if it has no integer form."""
        codes = [self.codes(n) for n in inputs]
        kind = self.kinds[node]
        if kind is OperationKind.ADD:
            a, b = [n for n in node.args if isinstance(n, fx.Node)]
            add = IntegerAdd(self.encodings[a], self.encodings[b], encoding)
            return self.call(name, add, (self.codes(a), self.codes(b)))
        if kind is OperationKind.CAT:
            dim = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", 0)
            tensors = node.args[0] if node.args else node.kwargs["tensors"]
            assert isinstance(tensors, list | tuple)
            assert isinstance(dim, int)
            parts = [n for n in tensors if isinstance(n, fx.Node)]
            cat = IntegerCat([self.encodings[n] for n in parts], encoding, dim)
            return self.call(name, cat, ([self.codes(n) for n in parts],))
        if kind is OperationKind.POOL:
            pool = self._average_pool(node, self.encodings[inputs[0]], encoding)
            return None if pool is None else self.call(name, pool, (codes[0],))
        return None

    def _average_pool(self, node: fx.Node, x: Encoding, y: Encoding) -> nn.Module | None:
        module = self.module(node) if node.op == "call_module" else None
        if isinstance(module, nn.AvgPool2d) or node.target is F.avg_pool2d:
            pool = module or nn.AvgPool2d(*node.args[1:], **node.kwargs)  # type: ignore[arg-type]
            assert isinstance(pool, nn.AvgPool2d)
            return None if pool.ceil_mode or pool.divisor_override else IntegerAveragePool(x, y, pool)
        if node.target in ("mean", torch.mean):
            assert mean_axes(node) == (2, 3)
            keepdim = node.args[2] if len(node.args) > 2 else node.kwargs.get("keepdim", False)
            return IntegerGlobalAverage(x, y, bool(keepdim))
        size = module.output_size if isinstance(module, nn.AdaptiveAvgPool2d) else node.args[1]
        return IntegerGlobalAverage(x, y) if size in (1, (1, 1), [1, 1]) else None

    def _data_movement(self, node: fx.Node) -> tuple[fx.Node, Encoding]:
        """The codes of an operation whose output has the encoding of its input."""
        source = node.all_input_nodes[0]
        codes = self.codes(source)
        encoding = self.encodings[source]
        module = self.module(node) if node.op == "call_module" else None
        if module is not None and is_identity_in_evaluation(module):
            return codes, encoding
        if isinstance(module, nn.MaxPool2d) or node.target is F.max_pool2d:
            pool = module or nn.MaxPool2d(*node.args[1:], **node.kwargs)  # type: ignore[arg-type]
            assert isinstance(pool, nn.MaxPool2d)
            return self.call(f"{node.name}_codes", IntegerMaxPool(encoding, pool), (codes,)), encoding
        if node.target is F.pad:
            pad: Any = node.args[1] if len(node.args) > 1 else node.kwargs["pad"]
            return self.call(f"{node.name}_codes", IntegerPad(encoding, tuple(pad)), (codes,)), encoding
        return self._copy(node, lambda n: codes if n is source else self.codes_or_float(n)), encoding

    def _computes_on_codes(self, layer: fx.Node) -> bool:
        return has_integer_form(self.module(layer)) and self.has_codes(layer.all_input_nodes[0])

    def _integer_layer(self, name: str, layer: fx.Node, norm: fx.Node | None, output: Encoding | None) -> fx.Node:
        """Layer + BatchNorm on codes; float32 out if `output` is None."""
        source = layer.all_input_nodes[0]
        codes = self.codes(source)
        x = self.encodings[source]
        return self.call(name, integer_layer(self.module(layer), self._norm_module(norm), x, output), (codes,))

    def _dynamic_layer(self, layer: fx.Node, norm: fx.Node | None) -> fx.Node:
        """Layer + BatchNorm on an input that is quantized on its own range; float32 out."""
        site = layer.all_input_nodes[0]
        if site not in self.as_dynamic_codes:
            x = self.float_value(site.all_input_nodes[0])
            self.as_dynamic_codes[site] = self.call(str(self.module(site).label), DynamicQuantize(), (x,))
        integer = dynamic_layer(self.module(layer), self._norm_module(norm))
        return self.call(str(layer.target), integer, (self.as_dynamic_codes[site],))

    def _norm_module(self, norm: fx.Node | None) -> nn.Module | None:
        return None if norm is None else self.module(norm)

    # Floats ----------------------------------------------------------------------------------------------------------

    def float_value(self, node: fx.Node) -> fx.Node:
        """The new node that holds the float value of an old tensor."""
        if node not in self.as_float:
            self.as_float[node] = self._float_value(node)
        return self.as_float[node]

    def codes_or_float(self, node: fx.Node) -> fx.Node:
        """The codes if there are any, otherwise the float value: to read sizes without dequantizing."""
        return self.codes(node) if self.has_codes(node) else self.float_value(node)

    def _float_value(self, node: fx.Node) -> fx.Node:
        if self.has_codes(node):
            codes = self.codes(node)
            return self.call(f"{node.name}_float", Dequantize(self.encodings[node]), (codes,))
        if self.kinds[node] is OperationKind.SHAPE:
            return self._copy(node, self.codes_or_float)
        norm = node if self.kinds[node] is OperationKind.NORM else None
        layer = node if norm is None else norm.all_input_nodes[0]
        if self.kinds[layer] is OperationKind.COMPUTE and (norm is None or len(layer.users) == 1):
            if self._computes_on_codes(layer):
                return self._integer_layer(str(layer.target), layer, norm, None)
            if has_integer_form(self.module(layer)) and self.is_dynamic(layer.all_input_nodes[0]):
                return self._dynamic_layer(layer, norm)
        if self.kinds[node] is OperationKind.COMPUTE:
            weight_only = weight_only_layer(self.module(node))
            return self.call(str(node.target), weight_only, (self.float_value(node.all_input_nodes[0]),))
        return self._copy(node, self.float_value)

    def _copy(self, node: fx.Node, new_input: Callable[[fx.Node], fx.Node]) -> fx.Node:
        """The same operation in the new graph, on `new_input` of each of its inputs."""
        if node.op == "call_module":
            return self.call(str(node.target), self.module(node), fx.map_arg(node.args, new_input))
        if node.op == "get_attr":
            name = str(node.target).replace(".", "_")
            owner, _, attribute = str(node.target).rpartition(".")
            self.root.register_buffer(name, getattr(self.source.get_submodule(owner), attribute).detach())
            return self.new_graph.get_attr(name)
        return self.new_graph.node_copy(node, new_input)


def _stored_table(table: LookupTable, fine: Encoding, encoding: Encoding) -> Tensor:
    """The table for stored codes, uint8 (256,). Codes that never occur have the entry of the nearest code that does."""
    index = torch.arange(256).clamp(fine.lowest, fine.highest) - fine.lowest
    return (table.codes.cpu()[index] + encoding.zero_point).to(torch.uint8)
