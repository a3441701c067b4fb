"""The integer model as a QDQ ONNX file that ONNX Runtime turns into QLinearConv, QLinearAdd and QGemm.

Arithmetic is written as DequantizeLinear - operation - QuantizeLinear, which the runtime fuses into one integer kernel.
Operations that only move codes (max pooling, slicing, padding, reshaping) work on the uint8 tensors themselves. ReLU, ReLU6
and grids below 8 bits are bounds on the codes: saturation if the bound is 0 or 255, otherwise a uint8 Clip, which, unlike a
float Clip, leaves every fusion intact.
"""

from __future__ import annotations

import dataclasses
import itertools
import operator
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnx
import torch
from onnx import helper
from torch import Tensor, fx, nn

from qat.arguments import as_path, check_network
from qat.export.onnx.data_movement import DATA_MOVEMENT, write_adaptive_max_pool
from qat.export.onnx.dialect import DEFAULT, Dialect, dialect_of
from qat.export.onnx.example_inputs import Examples, FreeAxes, bind, in_float32, without_constants
from qat.export.onnx.example_outputs import tensors_in
from qat.export.onnx.float_operations import write_float_function
from qat.export.onnx.float_subgraphs import find_float_subgraphs
from qat.export.onnx.graph_writer import NoOnnxFormError
from qat.export.onnx.integer_layers import LAYERS, check_has_samples, write_float_layer
from qat.export.onnx.integer_operations import OPERATIONS
from qat.export.onnx.proof import describe
from qat.export.onnx.qdq_graph import QdqGraph, Shape, tensor_name
from qat.export.onnx.tensor_names import TensorNames
from qat.export.onnx.torch_onnx import TorchOnnxWriter, names_in, written_before
from qat.export.onnx.trials import Trials
from qat.export.onnx.without_graph import is_converted_without_graph, onnx_model_without_graph
from qat.files import write_atomically
from qat.integer import Encoding, IntegerModel
from qat.integer.modules import IntegerModule
from qat.messages import shown
from qat.operations import AdaptiveMaxPool, describe_graph
from qat.torch_private import tree_leaves, tree_map_only


def export_onnx(
    model: nn.Module,
    example_inputs: Examples,
    path: str | Path,
    dynamic: FreeAxes | None = None,
    target: str = "onnxruntime",
) -> None:
    """Write an integer model to an ONNX file, whole or not at all.

    A model without a graph is written by torch.onnx around its quantizers and its stored weights.

    Inputs have the names of forward's arguments (`state_0`, `state_1` if an argument is a tuple), and floats are float32: the
    file of a half or double model computes in float32. An argument without tensors (None, a number, a flag) is a constant of
    the file. The output is called `output`; in a tuple or dict, outputs are called `output_0`, `output_logits` and so on. A
    name that is taken gets an underscore. The uint8 tensor of a site has the site's name. Weight codes are stored in 8, 4 or 2
    bits, as few as they need.

    Args:
        model: what `qat.convert` returned.
        example_inputs: one batch of the model's inputs: a tensor, a tuple, or a mapping of keyword arguments.
        path: the file to write.
        dynamic: input -> its free axes, `{"x": (0, 2, 3)}`; axes of one size have a name in common,
            `{"words": {0: "batch", 1: "length"}, "mask": {0: "batch", 2: "length"}}`. By default the first axis (the batch) is
            free, of every input that has as many samples as the first one; with {} none is, and the file has the batch of
            the example.
        target: the target in whose dialect of ONNX the file is written; "portable" for plain QDQ of opset 13.

    Raises:
        ValueError: the model is not what `qat.convert` returned, it cannot run on the example inputs or with other sizes of the
            free axes, an operation has no ONNX form here, or there is no such target; the message names it.
    """
    check_network(model)
    path, dialect = as_path(path), dialect_of(target)
    if not isinstance(example_inputs, Tensor | tuple | list | Mapping):
        raise ValueError(
            f"example_inputs={shown(example_inputs)} is not a batch: write export_onnx(model, example_inputs, path)."
        )
    if isinstance(model, IntegerModel):
        file = onnx_model(model, example_inputs, dynamic, dialect)
    elif is_converted_without_graph(model):
        file = onnx_model_without_graph(model, example_inputs, dynamic, dialect)
    else:
        raise ValueError(f"{type(model).__name__} cannot be exported: pass the result of qat.convert(prepared).")
    write_atomically(path, file.SerializeToString())


def export_portable(model: nn.Module, example_inputs: Examples, path: str | Path) -> None:
    """`export_onnx` for the target "portable"."""
    export_onnx(model, example_inputs, path, target="portable")


def export_tensorrt(model: nn.Module, example_inputs: Examples, path: str | Path) -> None:
    """`export_onnx` for the target "tensorrt"."""
    export_onnx(model, example_inputs, path, target="tensorrt")


def onnx_model(
    model: IntegerModel, example_inputs: Examples, dynamic: FreeAxes | None = None, dialect: Dialect = DEFAULT
) -> onnx.ModelProto:
    """The file of an integer model, in memory. The same model and shapes of examples give the same bytes.

    Raises:
        ValueError: as `export_onnx`.
    """
    single = in_float32(model)
    trials = Trials(*without_constants(single, bind(single.graph, example_inputs, dynamic)))
    exporter = _Exporter(trials, model, dialect.packs_weights)
    file = exporter.model_proto()
    if dialect.rewrite is not None:
        dialect.rewrite(file, exporter.encodings())
    if dynamic is not None:
        trials.check(file)
    axes = None if dynamic is None else trials.inputs.axes
    describe(file, model, list(trials.examples), axes, exporter.renamed_sites(), dialect.name)
    return file


class _Exporter:
    """Walks over the graph of an integer model: writers of this package write what they can, torch.onnx the rest."""

    def __init__(self, trials: Trials, model: IntegerModel, packs_weights: bool) -> None:
        self.trials, self.model = trials, trials.model
        self.outputs = trials.one
        tensors = {n: x for n, x in self.outputs.items() if isinstance(x, Tensor)}
        shapes = {n: Shape.of(x.shape, trials.other[n].shape) for n, x in tensors.items()}
        names = TensorNames(trials.input_tensors)
        self.output_names = names.reserve(trials.output_tensors)
        nodes = sorted(self.model.graph.nodes, key=lambda n: n.op != "call_module")  # sites and layers choose first
        self.reserved = {
            n: names.new(tensor_name(n)) for n in nodes if n.op not in ("placeholder", "get_attr", "output")
        }
        self.graph = QdqGraph(shapes, describe_graph(self.model, self.model.graph), names, packs_weights)
        self.torch_writer = TorchOnnxWriter(self.graph, self.model, trials.with_data, written_before(model))
        self.float_nodes: dict[fx.Node, None] = {}
        """The nodes that torch.onnx is to write."""

    def model_proto(self) -> onnx.ModelProto:
        """The whole file: writes all nodes whose results are read."""
        arguments = iter(self.trials.inputs.names.values())
        for node in self.model.graph.nodes:
            if node.op == "placeholder":
                self.graph.names[node] = next(arguments)
            elif node.op == "get_attr" and isinstance(self.outputs[node], Tensor):
                value = operator.attrgetter(str(node.target))(self.model)
                if not value.is_complex():  # a subgraph that reads a complex one holds it
                    self.graph.names[node] = self.graph.constant(value.detach().numpy())
            elif node.op != "output" and node.users and tensors_in(self.outputs[node]):
                self.graph.names[node] = self._write_node(node)
        subgraphs = find_float_subgraphs(
            self.model.graph, self.float_nodes, self.graph.names.__contains__, self._is_site
        )
        self.torch_writer.write(subgraphs)
        self._write_outputs()
        return self.graph.model(
            [self._tensor_info(name, name, x) for name, x in self.trials.input_tensors.items()],
            [self._tensor_info(self.output_names[name], name, x) for name, x in self.trials.output_tensors.items()],
        )

    def _write_outputs(self) -> None:
        """Give what is returned the names of outputs; an Identity that only renames would cost a copy."""
        returned = (leaf for leaf in tree_leaves(self.trials.output.args[0]) if isinstance(leaf, fx.Node))
        results = [name for node in returned for name in names_in(self.graph.names.get(node))]
        readers = Counter(name for node in self.graph.nodes for name in node.input) + Counter(results)
        producers = {name: node for node in self.graph.nodes for name in node.output}
        for result, name in zip(results, self.output_names.values(), strict=True):
            if readers[result] == 1 and result in producers:
                outputs = producers[result].output
                outputs[list(outputs).index(result)] = name
            else:
                self.graph.owned = {name: name}
                self.graph.node("Identity", [result], name)

    def _tensor_info(self, name: str, in_trials: str, x: Tensor) -> onnx.ValueInfoProto:
        try:
            dtype = helper.np_dtype_to_tensor_dtype(torch.empty(0, dtype=x.dtype).numpy().dtype)
        except TypeError:
            raise ValueError(f"{name!r} is {x.dtype}, which numpy does not know: cast it to float32.") from None
        return helper.make_tensor_value_info(name, dtype, self.trials.named_shape(in_trials))

    def _is_site(self, node: fx.Node) -> bool:
        module = self.model.get_submodule(str(node.target)) if node.op == "call_module" else None
        return isinstance(module, IntegerModule) and module.makes_codes

    def encodings(self) -> dict[str, Encoding]:
        """Tensor -> how its codes are read, of all sites on a fixed grid."""
        outputs = {
            name: self.model.get_submodule(str(n.target)).output
            for n, name in self.reserved.items()
            if self._is_site(n)
        }
        return {name: output for name, output in outputs.items() if isinstance(output, Encoding)}

    def renamed_sites(self) -> dict[str, str]:
        """Site -> its tensor, of sites whose name an input or output has."""
        return {str(n.target): name for n, name in self.reserved.items() if self._is_site(n) and name != str(n.target)}

    def _write_node(self, node: fx.Node) -> Any:
        """Write a node by our own writers or, if none can, leave it to torch.onnx; return the names of its outputs."""
        producer = next(iter(node.all_input_nodes), node)
        if isinstance(node.target, type) and dataclasses.is_dataclass(node.target):  # what forward returns
            return [name for n in node.all_input_nodes for name in names_in(self.graph.names.get(n))]
        if node.target is getattr and not isinstance(structure := self.graph.names.get(producer, ""), str):
            return getattr(structure, str(node.args[1]))  # one of several inputs
        if node.target is operator.getitem and not isinstance(self.graph.names.get(producer), str):
            if producer not in self.float_nodes:
                return self.graph.names[producer][node.args[1]]  # one of several inputs
            return self._leave(node)
        if any(x.is_complex() for n in (node, *node.all_input_nodes) for x in tensors_in(self.outputs[n])):
            return self._leave(node)  # ONNX has no complex numbers; torch.onnx writes pairs of floats
        self.graph.owned = {tensor_name(node): self.reserved[node]}
        try:
            with self.graph.attempt():
                if isinstance(operation := self.graph.operations[node], AdaptiveMaxPool):
                    return write_adaptive_max_pool(self.graph, node, operation)
                return self._write_module(node) if node.op == "call_module" else self._write_function(node)
        except NoOnnxFormError:
            return self._leave(node)

    def _leave(self, node: fx.Node) -> Any:
        """Leave a node to torch.onnx."""
        self.float_nodes[node] = None
        if isinstance(self.outputs[node], Tensor):
            return self.graph.tensor_names.again(self.reserved[node])
        names = (self.graph.tensor_names.new(f"{tensor_name(node)}_{i}") for i in itertools.count())
        return tree_map_only(Tensor, lambda _: next(names), self.outputs[node])

    def _write_module(self, node: fx.Node) -> str:
        module = self.model.get_submodule(str(node.target))
        check_has_samples(self.graph, node, module)
        writer = LAYERS.get(type(module)) or OPERATIONS.get(type(module))
        if writer is not None:
            return writer(self.graph, node, module)
        if isinstance(module, nn.AdaptiveAvgPool2d) and self._keeps_size(node):
            return self.graph.input(node)
        if isinstance(module, nn.Flatten):
            return self._write_reshape(node)
        return write_float_layer(self.graph, node, module)

    def _write_function(self, node: fx.Node) -> str:
        if node.target in (torch.flatten, torch.reshape, "flatten", "view", "reshape"):
            if self.outputs[node].dtype != self.outputs[node.all_input_nodes[0]].dtype:
                raise NoOnnxFormError(node.target, tensor_name(node))  # x.view(dtype)
            return self._write_reshape(node)
        if node.target in ("contiguous", "detach"):
            return self.graph.input(node)
        if node.target in DATA_MOVEMENT:
            return DATA_MOVEMENT[node.target](self.graph, node)
        if len({x.dtype for n in (node, *node.all_input_nodes) for x in tensors_in(self.outputs[n])}) > 1:
            raise NoOnnxFormError(node.target, tensor_name(node))  # torch promotes types, ONNX does not
        return write_float_function(self.graph, node)

    def _write_reshape(self, node: fx.Node) -> str:
        return self.graph.reshape(self.graph.input(node), self.graph.shapes[node], tensor_name(node))

    def _keeps_size(self, node: fx.Node) -> bool:
        """Whether input and output have the same fixed size."""
        shape = self.graph.shapes[node]
        return shape == self.graph.input_shape(node) and shape.free <= {0}
