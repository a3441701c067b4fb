"""The integer model as a QDQ ONNX file that ONNX Runtime turns into QLinearConv, QLinearAdd and QGemm.

Arithmetic is written as DequantizeLinear - operation - QuantizeLinear, which the runtime fuses into one integer kernel.
Operations that only move codes (max pooling, slicing, padding, reshaping) work on the uint8 tensors themselves. ReLU, ReLU6
and grids below 8 bits are bounds on the codes: saturation if the bound is 0 or 255, otherwise a uint8 Clip, which, unlike a
float Clip, leaves every fusion intact.
"""

from __future__ import annotations

import operator
from functools import cached_property
from pathlib import Path
from typing import Any

import onnx
import torch
from onnx import helper
from torch import Tensor, fx, nn

from qat.export.onnx.data_movement import DATA_MOVEMENT
from qat.export.onnx.example_outputs import ExampleOutputs, example_outputs, tensors_in
from qat.export.onnx.float_operations import write_float_function
from qat.export.onnx.graph_writer import NoOnnxFormError
from qat.export.onnx.integer_layers import LAYERS, write_float_layer
from qat.export.onnx.integer_operations import OPERATIONS
from qat.export.onnx.outputs import named_outputs
from qat.export.onnx.proof import describe
from qat.export.onnx.qdq_graph import QdqGraph, tensor_name
from qat.export.onnx.torch_onnx import TorchOnnxWriter
from qat.files import write_atomically
from qat.integer import IntegerModel
from qat.operations import describe_graph


def export_onnx(model: nn.Module, example_inputs: Tensor | tuple[Tensor, ...], path: str | Path) -> None:
    """Write an integer model to an ONNX file, whole or not at all.

    The first axis of every input and output (the batch) is free. Inputs and outputs are float32. The output is called
    `output`; in a tuple or dict, outputs are called `output_0`, `output_logits` and so on. The uint8 tensor of a site has the
    site's name. Weight codes are stored in 8, 4 or 2 bits, as few as they need.

    Args:
        model: what `qat.convert` returned.
        example_inputs: one batch of the model's inputs.
        path: the file to write.

    Raises:
        ValueError: the model is not an integer model with a graph, or an operation has no ONNX form here; the message names
            the operation.
    """
    if not isinstance(model, IntegerModel):
        raise ValueError(
            f"{type(model).__name__} cannot be exported: pass the result of qat.convert(prepared); a model that torch.fx "
            "cannot trace has no graph to write."
        )
    examples = example_inputs if isinstance(example_inputs, tuple) else (example_inputs,)
    write_atomically(Path(path), onnx_model(model, examples).SerializeToString())


def onnx_model(model: IntegerModel, examples: tuple[Tensor, ...]) -> onnx.ModelProto:
    """The file of an integer model, in memory. The same model and shapes of examples give the same bytes.

    Raises:
        ValueError: an operation has no ONNX form here; the message names the operation.
    """
    file = _Exporter(model, examples).model_proto()
    describe(file, model, examples)
    return file


class _Exporter:
    """Walks over the graph of an integer model and writes node after node."""

    def __init__(self, model: IntegerModel, examples: tuple[Tensor, ...]) -> None:
        self.model, self.examples = model, examples
        self.outputs = example_outputs(model, examples)
        shapes = {n: tuple(out.shape) for n, out in self.outputs.items() if isinstance(out, Tensor)}
        self.graph = QdqGraph(shapes, describe_graph(model, model.graph))
        self.torch_writer = TorchOnnxWriter(self.graph, model)

    @cached_property
    def outputs_for_two_batch_sizes(self) -> tuple[ExampleOutputs, ExampleOutputs]:
        """Example outputs for twice and three times the batch: sizes that differ depend on the batch size."""
        twice, thrice = (example_outputs(self.model, tuple(torch.cat([x] * n) for x in self.examples)) for n in (2, 3))
        return twice, thrice

    def model_proto(self) -> onnx.ModelProto:
        """Write all nodes that are read."""
        inputs, outputs = [], []
        for node in self.model.graph.nodes:
            if node.op == "placeholder":
                if node not in self.graph.shapes:
                    raise ValueError(
                        f"input {node.target!r} is not a tensor in the example inputs: pass a tensor for it."
                    )
                self.graph.names[node] = str(node.target)
                inputs.append(self._tensor_info(str(node.target), node))
            elif node.op == "output":
                for name, result in named_outputs(node.args[0]).items():
                    self.graph.node("Identity", [self.graph.names[result]], name)
                    outputs.append(self._tensor_info(name, result))
            elif node.op == "get_attr":
                self.graph.names[node] = self.graph.constant(getattr(self.model, str(node.target)).numpy())
            elif node.users and tensors_in(self.outputs[node]):
                self.graph.names[node] = self._write_node(node)
        self._remove_needless_identities()
        return self.graph.model(inputs, outputs)

    def _remove_needless_identities(self) -> None:
        """Drop the Identity behind a node whose output nothing else reads: it would only cost a copy."""
        for identity in [n for n in self.graph.nodes if n.op_type == "Identity"]:
            readers = [n for n in self.graph.nodes if identity.input[0] in n.input]
            producer = next((n for n in self.graph.nodes if identity.input[0] in n.output), None)
            if len(readers) == 1 and producer is not None:
                self.graph.nodes.remove(identity)
                producer.output[list(producer.output).index(identity.input[0])] = identity.output[0]

    def _tensor_info(self, name: str, node: fx.Node) -> onnx.ValueInfoProto:
        dtype = helper.np_dtype_to_tensor_dtype(torch.empty(0, dtype=self.outputs[node].dtype).numpy().dtype)
        return helper.make_tensor_value_info(name, dtype, ["batch", *self.graph.shapes[node][1:]])

    def _write_node(self, node: fx.Node) -> Any:
        """Write a node by our own writers or, if none can, by torch.onnx; return the names of its outputs."""
        if node.target is operator.getitem and not isinstance(self.graph.names[node.all_input_nodes[0]], str):
            return self.graph.names[node.all_input_nodes[0]][node.args[1]]  # one of several outputs
        written = len(self.graph.nodes)
        try:
            return self._write_module(node) if node.op == "call_module" else self._write_function(node)
        except NoOnnxFormError:
            del self.graph.nodes[written:]
            return self._write_by_torch(node)

    def _write_module(self, node: fx.Node) -> str:
        module = self.model.get_submodule(str(node.target))
        writer = LAYERS.get(type(module)) or OPERATIONS.get(type(module))
        if writer is not None:
            return writer(self.graph, node, module)
        if isinstance(module, nn.AdaptiveAvgPool2d) and self.graph.shapes[node] == self.graph.input_shape(node):
            return self.graph.input(node)
        if isinstance(module, nn.Flatten):
            return self._write_reshape(node)
        return write_float_layer(self.graph, node, module)

    def _write_function(self, node: fx.Node) -> str:
        if node.target in (torch.flatten, torch.reshape, "flatten", "view", "reshape"):
            if self._mixes_batch(node):
                raise NoOnnxFormError(node.target, tensor_name(node))
            return self._write_reshape(node)
        if node.target in ("contiguous", "detach"):
            return self.graph.input(node)
        if node.target in DATA_MOVEMENT:
            return DATA_MOVEMENT[node.target](self.graph, node)
        return write_float_function(self.graph, node)

    def _write_reshape(self, node: fx.Node) -> str:
        return self.graph.reshape(self.graph.input(node), self.graph.shapes[node], tensor_name(node))

    def _mixes_batch(self, node: fx.Node) -> bool:
        """Whether the size of an axis other than the first depends on the batch size."""
        if self.graph.shapes[node][0] == len(self.examples[0]):
            return False
        twice, thrice = (outputs[node].shape[1:] for outputs in self.outputs_for_two_batch_sizes)
        return twice != thrice

    def _write_by_torch(self, node: fx.Node) -> Any:
        name = tensor_name(node)
        results = self.torch_writer.write(node, self.graph.names, self.outputs_for_two_batch_sizes, name)
        output = self.outputs[node]
        if isinstance(output, Tensor) and output.is_floating_point() and self.graph.reads_dequantized(node):
            return self.graph.unchanged(results, name)  # or the runtime would compute the operation on codes
        return results
