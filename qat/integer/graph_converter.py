"""Rebuild the graph of a prepared model with integer modules."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from operator import attrgetter
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, fx, nn

from qat.integer.arithmetic import Encoding
from qat.integer.convert_layer import dynamic_layer, integer_layer, norm_layer, weight_only
from qat.integer.convert_operation import integer_module, integer_movement
from qat.integer.encodings import encodings_of
from qat.integer.integer_model import IntegerModel
from qat.integer.modules import Dequantize, DynamicQuantize, LookUp, Quantize, Requantize
from qat.integer.weight_only import WeightOnlyModule
from qat.operations import (
    CHECKS,
    BatchNormalization,
    Layer,
    Move,
    Rectify,
    Role,
    Size,
    describe_graph,
    has_form_alone,
    is_computed_on_codes,
    tensors_with_codes,
)
from qat.quantizers import Dynamic, DynamicPerToken, LookupTable, Quantizer


class Value(NamedTuple):
    """A tensor of the old graph in one form."""

    node: fx.Node
    form: Literal["codes", "float", "dynamic codes"]


class Step(NamedTuple):
    """How a value is made: the values that it needs, and a function of their nodes in the new graph, which makes its node."""

    needs: tuple[Value, ...]
    build: Callable[..., Any]


class GraphConverter:
    """Rebuilds a graph from its output back to its inputs: each tensor as codes, as float, or both, as its readers need it.

    Args:
        source: the prepared model. It is taken apart: layers left in float move into the new model.
        graph: its graph.
    """

    def __init__(self, source: nn.Module, graph: fx.Graph) -> None:
        self.source, self.graph = source, graph
        self.root, self.new_graph = nn.Module(), fx.Graph()
        self.operations = describe_graph(source, graph)
        self.made: dict[Value, Any] = {}
        self.weight_only: dict[int, nn.Module] = {}
        self.constants: dict[str, str] = {}
        self.with_codes = tensors_with_codes(source, self.operations)
        self.encodings = encodings_of(source, self.operations, self.with_codes)

    def convert(self) -> IntegerModel:
        """Build the integer model."""
        for node in self.graph.nodes:
            if node.op == "placeholder":
                self.made[Value(node, "float")] = self.new_graph.placeholder(
                    node.target, default_value=node.args[0] if node.args else inspect.Parameter.empty
                )
            elif node.target in CHECKS:
                for argument in node.all_input_nodes:
                    self._make(Value(argument, "float"))
                self.new_graph.node_copy(node, lambda n: self.made[Value(n, "float")])
            elif node.op == "output":
                for result in node.all_input_nodes:
                    self._make(Value(result, "float"))
                self.new_graph.output(fx.map_arg(node.args[0], lambda n: self.made[Value(n, "float")]))
        self.new_graph.lint()
        return IntegerModel(self.root, self.new_graph, f"Integer{type(self.source).__name__}").eval()

    def _make(self, wanted: Value) -> None:
        """Make a value and, before it, everything that it needs."""
        steps: dict[Value, Step] = {}
        pending = [wanted]
        while pending:
            value = pending[-1]
            if value in self.made:
                pending.pop()
                continue
            if value not in steps:
                steps[value] = self._codes(value.node) if value.form == "codes" else self._not_codes(value)
            step = steps[value]
            missing = [need for need in step.needs if need not in self.made]
            if missing:
                pending += reversed(missing)
            else:
                self.made[value] = step.build(*(self.made[need] for need in step.needs))

    def _not_codes(self, value: Value) -> Step:
        return self._dynamic_codes(value.node) if value.form == "dynamic codes" else self._float(value.node)

    def _module(self, node: fx.Node) -> nn.Module:
        """The module that an old node calls."""
        return self.source.get_submodule(str(node.target))

    def _is_dynamic(self, node: fx.Node) -> bool:
        """Whether the node is a site that quantizes each tensor on its own range."""
        return self.operations[node].role is Role.SITE and isinstance(self._module(node), Dynamic)

    def _call(self, name: str, module: nn.Module, *arguments: Any) -> fx.Node:
        """Add a module, named after the site or layer that it computes, and a call of it."""
        name = self._free(name)
        self.root.add_module(name, module)
        return self.new_graph.call_module(name, arguments)

    def _free(self, name: str) -> str:
        """The name without dots, which two old names may share: the second gets an underscore behind it."""
        name = name.replace(".", "_")
        while hasattr(self.root, name):
            name += "_"
        return name

    # Codes -----------------------------------------------------------------------------------------------------------

    def _codes(self, node: fx.Node) -> Step:
        """The uint8 codes of an old tensor; `self.encodings` says how they are read."""
        if self.operations[node].role is not Role.SITE:
            return self._movement(node)
        quantizer = self._module(node)
        assert isinstance(quantizer, Quantizer)
        table, encoding = quantizer.lookup_table(), self.encodings[node]
        if table is None:
            return self._quantized(node, quantizer.label, encoding)
        fine = Encoding.of_grid(table.grid, table.qparams)
        step = self._quantized(node, f"{quantizer.label}_fine", fine)
        look_up = LookUp(_stored_table(table, fine, encoding), encoding)
        return Step(step.needs, lambda *made: self._call(quantizer.label, look_up, step.build(*made)))

    def _quantized(self, site: fx.Node, name: str, encoding: Encoding) -> Step:
        """The codes of a site: made by the integer operation before it, if that has one."""
        end = head = self.operations[site].inputs[0]
        if end not in self.encodings and isinstance(before := self.operations[end], Rectify):
            head = before.inputs[0]
            encoding = encoding.after_relu(before.ceiling)
        if head in self.encodings:
            requantize = Requantize(self.encodings[head], encoding)
            return Step((Value(head, "codes"),), lambda codes: self._call(name, requantize, codes))
        step = self._layer_to(head, name, encoding) or self._arithmetic(head, name, encoding)
        if step is not None:
            return step
        return Step((Value(end, "float"),), lambda x: self._call(name, Quantize(encoding), x))

    def _layer_to(self, node: fx.Node, name: str, output: Encoding | None) -> Step | None:
        """Layer + BatchNorm on codes; float32 out if `output` is None. None if `node` does not end such a pair."""
        norm = node if isinstance(self.operations[node], BatchNormalization) else None
        layer = node if norm is None else self.operations[norm].inputs[0]
        norm_module = None if norm is None else self._module(norm)
        operation = self.operations[layer]
        if norm is not None and layer in self.encodings and has_form_alone(self.operations[norm]) and output:
            x = self.encodings[layer]
            return Step((Value(layer, "codes"),), lambda c: self._call(name, norm_layer(norm_module, x, output), c))
        if not isinstance(operation, Layer) or (norm is not None and output is None and len(layer.users) > 1):
            return None
        if not is_computed_on_codes(self.source, layer, self.operations, self.with_codes):
            return None
        source = operation.inputs[0]
        if source in self.encodings:
            x = self.encodings[source]
            return Step(
                (Value(source, "codes"),),
                lambda codes: self._call(name, integer_layer(operation.module, norm_module, x, output), codes),
            )
        if output is None and self._is_dynamic(source):
            per_token = isinstance(self._module(source), DynamicPerToken)
            return Step(
                (Value(source, "dynamic codes"),),
                lambda codes: self._call(name, dynamic_layer(operation.module, norm_module, per_token), codes),
            )
        return None

    def _arithmetic(self, node: fx.Node, name: str, output: Encoding) -> Step | None:
        """An operation without weight on codes; None if it has no integer form."""
        operation = self.operations[node]
        if operation.role is not Role.ARITHMETIC or not all(n in self.encodings for n in operation.inputs):
            return None
        encodings = [self.encodings[n] for n in operation.inputs]
        module = integer_module(self.source, node, operation, encodings, output)
        if module is None:
            return None
        needs = tuple(Value(n, "codes") for n in operation.inputs)
        return Step(needs, lambda *codes: self._call(name, module, *codes))

    def _movement(self, node: fx.Node) -> Step:
        """The codes of an operation whose output has the encoding of its input."""
        operation = self.operations[node]
        assert isinstance(operation, Move)
        source = operation.inputs[0]
        if operation.identity:
            return Step((Value(source, "codes"),), lambda codes: codes)
        module = integer_movement(operation, self.encodings[source])
        if module is not None:
            return Step((Value(source, "codes"),), lambda codes: self._call(f"{node.name}_codes", module, codes))
        if operation.on_bytes:
            return self._copy(node, self._codes_or_float)
        return self._copy_through_float(node, source)

    def _copy_through_float(self, node: fx.Node, source: fx.Node) -> Step:
        """A movement that torch has for float tensors only: codes are exact in float32."""
        step = self._copy(node, self._codes_or_float)

        def build(*made: fx.Node) -> fx.Node:
            inputs = [
                self.new_graph.call_method("float", (new,)) if need.node is source else new
                for need, new in zip(step.needs, made, strict=True)
            ]
            return self.new_graph.call_method("to", (step.build(*inputs), torch.uint8))

        return Step(step.needs, build)

    def _codes_or_float(self, node: fx.Node) -> Value:
        """The codes if there are any, otherwise the float value: to read sizes without dequantizing."""
        return Value(node, "codes" if node in self.encodings else "float")

    def _dynamic_codes(self, site: fx.Node) -> Step:
        source, quantizer = self.operations[site].inputs[0], self._module(site)
        quantize = DynamicQuantize(per_token=isinstance(quantizer, DynamicPerToken))
        return Step((Value(source, "float"),), lambda x: self._call(str(quantizer.label), quantize, x))

    # Floats ----------------------------------------------------------------------------------------------------------

    def _float(self, node: fx.Node) -> Step:
        """The float value of an old tensor."""
        operation = self.operations[node]
        if node in self.encodings:
            encoding = self.encodings[node]
            return Step(
                (Value(node, "codes"),), lambda codes: self._call(f"{node.name}_float", Dequantize(encoding), codes)
            )
        if isinstance(operation, Size):
            if operation.of_type and node.all_input_nodes[0] in self.encodings:
                return Step((), lambda: torch.float32 if node.target is getattr else True)
            return self._copy(node, self._codes_or_float)
        if isinstance(operation, Move) and operation.passes_numbers:
            return Step((Value(operation.inputs[0], "float"),), lambda x: x)
        name = str(node.target if isinstance(operation, Layer) or not operation.inputs else operation.inputs[0].target)
        if operation.role in (Role.LAYER, Role.NORM) and (step := self._layer_to(node, name, None)) is not None:
            return step
        return self._copy(node, lambda n: Value(n, "float"))

    def _copy(self, node: fx.Node, form: Callable[[fx.Node], Value]) -> Step:
        """The same operation in the new graph, on one form of each of its inputs."""
        if node.op == "get_attr":
            return Step((), lambda: self._constant(node))
        needs = tuple(form(n) for n in node.all_input_nodes)

        def build(*made: fx.Node) -> fx.Node:
            new = dict(zip(node.all_input_nodes, made, strict=True))
            args, kwargs = fx.map_arg((node.args, node.kwargs), new.__getitem__)
            if node.op == "call_module":
                module = self._weight_only(self._module(node))
                if isinstance(module, WeightOnlyModule):
                    weights = zip(module.matrices, module.stored, strict=True)
                    given = {key: self._call(f"{node.target}.{key}", weight) for key, weight in weights}
                    module, kwargs = WeightOnlyModule(module.module, {}), {**kwargs, "given": given}
                call = self._call(str(node.target), module, *args)
                call.kwargs = kwargs
                return call
            target = node.target
            if target == "view" and not any(isinstance(a, torch.dtype) for a in (*args, *kwargs.values())):
                target, args, kwargs = "reshape", (*args, *kwargs.values()), {}  # the contiguous() before it is gone
            return self.new_graph.create_node(node.op, target, args, kwargs, name=node.name)

        return Step(needs, build)

    def _weight_only(self, module: nn.Module) -> nn.Module:
        """`weight_only`, the same for every call of the module."""
        if id(module) not in self.weight_only:
            self.weight_only[id(module)] = weight_only(module)
        return self.weight_only[id(module)]

    def _constant(self, node: fx.Node) -> fx.Node:
        """A parameter or buffer of the old model, which several nodes may read."""
        target = str(node.target)
        if target not in self.constants:
            self.constants[target] = self._free(target)
            self.root.register_buffer(self.constants[target], attrgetter(target)(self.source).detach())
        return self.new_graph.get_attr(self.constants[target])


def _stored_table(table: LookupTable, fine: Encoding, encoding: Encoding) -> Tensor:
    """The table for stored codes, uint8 (256,). Codes that never occur have the entry of the nearest code that does."""
    index = torch.arange(256).clamp(fine.lowest, fine.highest) - fine.lowest
    return (table.codes.cpu()[index] + encoding.zero_point).to(torch.uint8)
