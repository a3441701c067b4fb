"""A network without a graph as an ONNX file: torch.onnx writes all but its quantizers and stored weights."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Mapping
from typing import Any

import onnx
import torch
from onnx import TensorProto, helper
from torch import Tensor, fx, nn

from qat.capture import argument_names, call_arguments, called_by_name
from qat.export.onnx.dialect import DEFAULT, Dialect
from qat.export.onnx.example_inputs import ExampleInputs, Examples, FreeAxes, bind, named_tensors
from qat.export.onnx.graph_writer import OPSET
from qat.export.onnx.integer_layers import dequantized_once
from qat.export.onnx.proof import describe
from qat.export.onnx.qdq_graph import QdqGraph
from qat.export.onnx.tensor_names import TensorNames
from qat.export.onnx.torch_exporter import export_with_torch
from qat.export.onnx.trials import check_outputs
from qat.export.outputs import named_outputs
from qat.integer import Encoding, IntegerModel
from qat.integer.weight_only import StoredMatrix, StoredWeight, WeightOnlyLayer, WeightOnlyModule, of_wrapped
from qat.nn import as_quantized, compute_with, is_quantized, with_replaced
from qat.quantizers import Dynamic, Quantizer
from qat.torch_private import tree_leaves, tree_map

DOMAIN = "qat"
"""Domain of the operators that stand for quantizers and stored weights until those are written."""


def onnx_model_without_graph(
    model: nn.Module, example_inputs: Examples, dynamic: FreeAxes | None, dialect: Dialect = DEFAULT
) -> onnx.ModelProto:
    """The file of what `qat.convert` made of a model without a graph, in memory.

    Raises:
        ValueError: torch.export cannot follow forward, or the file computes something else; the message says what.
    """
    single = copy.deepcopy(model).float().cpu().eval()
    inputs = bind(_arguments(single, example_inputs), example_inputs, dynamic)
    trials = [inputs.trial(i) for i in (1, 2)]
    with torch.no_grad(), called_by_name(single, list(inputs.values), {}):
        expected = [named_outputs(single(**dict(zip(inputs.values, trial, strict=True)))) for trial in trials]
    parts = {name: part for name, part in single.named_modules() if isinstance(part, Quantizer | StoredWeight)}
    marked = _with_markers(copy.deepcopy(single))
    with called_by_name(marked, list(inputs.values), {}):
        exported = _torch_export(marked, inputs, inputs.trial(0))
    file = _Writer(exported, inputs, list(expected[0]), parts, dialect.packs_weights).model_proto()
    if dialect.rewrite is not None:
        dialect.rewrite(file, {})
    for trial, outputs in zip(trials, expected, strict=True):
        check_outputs(file, dict(named_tensors(trial, inputs.names.values())), outputs)
    tensors = [x for x in tree_leaves(tuple(inputs.values.values())) if isinstance(x, Tensor)]
    describe(file, model, tensors, None if dynamic is None else inputs.axes, dialect=dialect.name)
    return file


def is_converted_without_graph(model: nn.Module) -> bool:
    """Whether this is what `qat.convert` made of a model without a graph."""
    return not isinstance(model, IntegerModel) and any(isinstance(m, StoredWeight) for m in model.modules())


def _arguments(model: nn.Module, examples: Examples) -> fx.Graph:
    """The arguments of forward as placeholders."""
    graph, signature = fx.Graph(), inspect.signature(model.forward)
    given = dict(examples) if isinstance(examples, Mapping) else {}
    if isinstance(examples, tuple):
        given = call_arguments(signature, examples, {})
    for name in argument_names(signature, given):
        parameter = signature.parameters.get(name)
        graph.placeholder(name, default_value=inspect.Parameter.empty if parameter is None else parameter.default)
    return graph


class _Marked(nn.Module):
    """Stands for a quantizer: an operator of `DOMAIN` that names it."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name

    def forward(self, x: Tensor) -> Tensor:
        return torch.onnx.ops.symbolic(
            f"{DOMAIN}::Quantize", (x,), {"part": self.name}, dtype=x.dtype, shape=x.shape, version=1
        )


class _MarkedLayer(nn.Module):
    """A layer whose stored weight is an operator of `DOMAIN` that names it."""

    anchor: Tensor

    def __init__(self, name: str, layer: nn.Module, stored: bool) -> None:
        super().__init__()
        self.name, self.layer, self.stored = name, layer, stored
        quantizer = as_quantized(layer).input_quantizer
        owner = f"{name}.layer" if self.stored else name
        self.input = nn.Identity() if quantizer is None else _Marked(f"{owner}.input_quantizer")
        self.register_buffer("anchor", torch.zeros(1))

    def __getattr__(self, name: str) -> Any:
        """As `WeightOnlyLayer`: code around a layer may read its weight, and its options."""
        if name == "weight" and vars(self).get("stored"):
            layer: Any = self.layer
            return _marked_weight(self.name, layer.weight.shape, self.anchor)
        return of_wrapped(self, name, "layer", super().__getattr__)

    def forward(self, input: Tensor, *others: Any, **named: Any) -> Tensor:
        layer: Any = self.layer
        result: Tensor = layer.compute(self.input(input), self.weight, *others, **named)
        return result


class _MarkedModule(nn.Module):
    """A module whose stored matrices are operators of `DOMAIN` that name them."""

    anchor: Tensor

    def __init__(self, name: str, part: WeightOnlyModule) -> None:
        super().__init__()
        self.module = part.module
        if getattr(part.module, "input_quantizer", None) is not None:
            part.module.input_quantizer = _Marked(f"{name}.module.input_quantizer")
        self.shapes = {
            key: (f"{name}.stored.{i}", part.get_buffer(f"stored.{i}.weight").shape)
            for i, key in enumerate(part.matrices)
        }
        self.register_buffer("anchor", torch.zeros(1))

    def __getattr__(self, name: str) -> Any:
        return of_wrapped(self, name, "module", super().__getattr__)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        weights = {key: _marked_weight(name, shape, self.anchor) for key, (name, shape) in self.shapes.items()}
        return compute_with(self.module, weights, *args, **kwargs)


def _marked_weight(name: str, shape: torch.Size, anchor: Tensor) -> Tensor:
    return torch.onnx.ops.symbolic(
        f"{DOMAIN}::Weight", (anchor,), {"part": name}, dtype=torch.float32, shape=shape, version=1
    )


def _with_markers(model: nn.Module) -> nn.Module:
    """The model with a marker for every quantized layer and quantizer, in place."""
    markers: dict[nn.Module, nn.Module] = {}
    inside: set[nn.Module] = set()
    for name, part in model.named_modules():
        if part in inside:
            continue
        if isinstance(part, WeightOnlyLayer):
            markers[part] = _MarkedLayer(name, part.layer, stored=True)
        elif isinstance(part, WeightOnlyModule):
            markers[part] = _MarkedModule(name, part)
        elif is_quantized(part):
            markers[part] = _MarkedLayer(name, part, stored=False)
        elif isinstance(part, Quantizer):
            markers[part] = _Marked(name)
        if part in markers:
            inside.update(part.modules())
    return with_replaced(model, markers)


def _torch_export(model: nn.Module, inputs: ExampleInputs, values: tuple[Any, ...]) -> onnx.ModelProto:
    def free(value: Any, name: Any) -> Any:
        if not isinstance(value, Tensor):
            return None
        return dict.fromkeys(inputs.axes.get(name, {}), torch.export.Dim.AUTO)

    arguments = dict(zip(inputs.values, values, strict=True))
    shapes = {name: tree_map(free, value, inputs.names[name]) for name, value in arguments.items()}
    try:
        file = export_with_torch(model, (), kwargs=arguments, opset_version=OPSET, dynamic_shapes=shapes)
    except torch.onnx.errors.OnnxExporterError as error:
        cause = error.__cause__ or error
        raise ValueError(
            f"{type(model).__name__} cannot be exported: it has no graph, and torch.export cannot follow its forward "
            f"({next(iter(str(cause).splitlines()), type(cause).__name__)}): write what depends on values with torch.where, or "
            "run the result of qat.convert in torch."
        ) from error
    if branching := next((n for n in file.graph.node if any(a.HasField("g") for a in n.attribute)), None):
        raise ValueError(
            f"{type(model).__name__} cannot be exported: its forward chooses what it computes (torch.cond, a loop), which is "
            f"{branching.op_type} in a file: write it with torch.where, or run the result of qat.convert in torch."
        )
    return file


class _Writer:
    """Copies what torch.onnx wrote, and writes quantizers and weights in place of their markers."""

    def __init__(
        self,
        exported: onnx.ModelProto,
        inputs: ExampleInputs,
        outputs: list[str],
        parts: Mapping[str, nn.Module],
        packs_weights: bool,
    ) -> None:
        self.exported, self.parts = exported.graph, parts
        values = inputs.values.values()
        self.inputs = [name for name, _ in named_tensors(values, inputs.names.values())]
        names = TensorNames(self.inputs)
        self.outputs = list(names.reserve(outputs).values())
        self.graph = QdqGraph({}, names=names, packs_weights=packs_weights)
        self.weights: dict[str, str] = {}

    def model_proto(self) -> onnx.ModelProto:
        """The whole file."""
        graph = self.graph
        names = {"": "", **dict(zip((i.name for i in self.exported.input), self.inputs, strict=True))}
        names |= {t.name: graph.constant(onnx.numpy_helper.to_array(t)) for t in self.exported.initializer}
        for node in self.exported.node:
            if node.domain == DOMAIN:
                part = next(a.s.decode() for a in node.attribute if a.name == "part")
                write = self._weight if node.op_type == "Weight" else self._quantized
                names[node.output[0]] = write(part, names[node.input[0]])
            else:
                names |= {o: graph.unique(f"/{o}") for o in node.output if o}
                graph.copy(node, names)
        for output, name in zip(self.exported.output, self.outputs, strict=True):
            graph.owned = {name: name}
            graph.node("Identity", [names[output.name]], name)
        read = {name for node in graph.nodes for name in node.input}
        graph.constants = [c for c in graph.constants if c.name in read]
        inputs, outputs = (
            [helper.make_tensor_value_info(n, v.type.tensor_type.elem_type, _shape(v)) for n, v in pairs]
            for pairs in (
                zip(self.inputs, self.exported.input, strict=True),
                zip(self.outputs, self.exported.output, strict=True),
            )
        )
        return graph.model(inputs, outputs)

    def _weight(self, part: str, anchor: str) -> str:
        if part not in self.weights:
            layer = self.parts[part]
            assert isinstance(layer, StoredWeight)
            name = part if isinstance(layer, StoredMatrix) else f"{part}_weight"
            self.weights[part] = dequantized_once(self.graph, layer, name)
        return self.weights[part]

    def _quantized(self, part: str, real: str) -> str:
        """The quantized value as float. The LeakyRelu keeps the runtime from rounding the weights behind it."""
        graph, quantizer = self.graph, self.parts[part]
        assert isinstance(quantizer, Quantizer)
        label = quantizer.label
        if isinstance(quantizer, Dynamic):
            codes = graph.node("DynamicQuantizeLinear", [real], label, more_outputs=[f"{label}_scale", f"{label}_zero"])
            return graph.node("DequantizeLinear", [codes, *graph.nodes[-1].output[1:]], f"{label}_dq")
        encoding, table = Encoding.of_quantizer(quantizer), quantizer.lookup_table()
        if table is None:
            codes = graph.quantized(real, encoding, label)
        else:
            fine = Encoding.of_grid(table.grid, table.qparams)
            index = graph.quantized(real, fine, f"{label}_fine")
            index = graph.node("Cast", [index], f"{label}_index", to=TensorProto.INT32)
            entries = torch.arange(256).clamp(fine.lowest, fine.highest) - fine.lowest
            stored = (table.codes.cpu()[entries] + encoding.zero_point).to(torch.uint8)
            codes = graph.node("Gather", [graph.constant(stored.numpy()), index], label)
        return graph.unchanged(graph.dequantized(codes, encoding), f"{label}_real")


def _shape(value: onnx.ValueInfoProto) -> list[int | str]:
    return [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim]
