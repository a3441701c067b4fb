"""The integer model as a QDQ ONNX file that ONNX Runtime turns into QLinearConv, QLinearAdd and QGemm.

Around arithmetic the graph is DequantizeLinear - operation - QuantizeLinear, which the runtime fuses into one integer
kernel. What only moves codes (max pooling, slicing, padding, reshaping) works on the uint8 tensors themselves. ReLU, ReLU6
and grids below 8 bits are bounds on the codes: saturation where the bound is 0 or 255, otherwise a uint8 Clip, which,
unlike a float Clip, leaves every fusion intact.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_leaves, tree_map_only

from qat.export.onnx.data_movement import MOVES, pads_of_axes
from qat.export.onnx.float_operations import write_float
from qat.export.onnx.graph_writer import GraphWriter, NoOnnxFormError
from qat.export.onnx.outputs import named_outputs
from qat.export.onnx.torch_onnx import Meaning, TorchOnnxWriter
from qat.integer import Codes, IntegerModel
from qat.integer import modules as integer
from qat.quantizers import Dynamic


def export_onnx(model: nn.Module, example_inputs: Tensor | tuple[Tensor, ...], path: str | Path) -> None:
    """Write the integer model that `qat.convert` made to `path`, whole or not at all.

    The first axis of every input and output is free (the batch). Inputs and outputs are float32; outputs are called `output`,
    in a tuple or dict `output_0`, `output_logits` and so on. A site keeps its name as the name of its uint8 tensor. Weight
    codes are stored in 8, 4 or 2 bits, as few as they need.

    Raises:
        ValueError: the model is not an integer model with a graph, or an operation has no ONNX form here (named).
    """
    if not isinstance(model, IntegerModel):
        raise ValueError(
            f"{type(model).__name__} cannot be exported: pass the result of qat.convert(prepared); a model that torch.fx "
            "cannot trace has no graph to write."
        )
    examples = example_inputs if isinstance(example_inputs, tuple) else (example_inputs,)
    _Exporter(model, examples).write(Path(path))


class _Meanings(fx.Interpreter):
    """What every node returns for these inputs, its tensors without their data."""

    def __init__(self, model: fx.GraphModule, inputs: tuple[Tensor, ...]) -> None:
        super().__init__(model)
        self.found: dict[fx.Node, Any] = {}
        with torch.no_grad():
            self.run(*inputs)

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        dynamic = n.op == "call_module" and isinstance(
            self.module.get_submodule(str(n.target)), integer.DynamicQuantize
        )
        told = result[0] if dynamic else result  # codes, with their scale and zero-point beside them
        self.found[n] = tree_map_only(Tensor, lambda t: t.to("meta"), told)
        return result


class _Exporter:
    def __init__(self, model: IntegerModel, examples: tuple[Tensor, ...]) -> None:
        self.model, self.examples = model, examples
        self.graph = GraphWriter()
        self.islands = TorchOnnxWriter(self.graph, model)
        self.names: dict[fx.Node, Any] = {}
        """Of tensors in the file; nested where an operation returns several."""
        self.real: dict[tuple[str, Codes], str] = {}
        self.meanings = _Meanings(model, examples).found
        self.shapes = {n: tuple(m.shape) for n, m in self.meanings.items() if isinstance(m, Tensor)}

    @cached_property
    def two_sizes(self) -> tuple[Meaning, Meaning]:
        """What nodes return for twice and for three times the batch: what differs depends on its size."""
        twice, thrice = (_Meanings(self.model, tuple(torch.cat([x] * n) for x in self.examples)).found for n in (2, 3))
        return twice, thrice

    def write(self, path: Path) -> None:
        inputs, outputs = [], []
        for node in self.model.graph.nodes:
            if node.op == "placeholder":
                if node not in self.shapes:
                    raise ValueError(f"input {node.target!r} is no tensor in the example inputs: pass a tensor for it.")
                self.names[node] = str(node.target)
                inputs.append(self._tensor_info(str(node.target), node))
            elif node.op == "output":
                for name, result in named_outputs(node.args[0]).items():
                    self.graph.node("Identity", [self.names[result]], name)
                    outputs.append(self._tensor_info(name, result))
            elif node.op == "get_attr":
                self.names[node] = self.graph.constant(getattr(self.model, str(node.target)).numpy())
            elif node.users and _has_tensors(self.meanings[node]):
                self.names[node] = self._emit(node)
        self._output_is_last_node()
        self.graph.save(path, inputs, outputs, {"generator": "qat"})

    def _output_is_last_node(self) -> None:
        """Drop an Identity behind a node whose result nothing else reads: it would only cost a copy."""
        for identity in [n for n in self.graph.nodes if n.op_type == "Identity"]:
            readers = [n for n in self.graph.nodes if identity.input[0] in n.input]
            producer = next((n for n in self.graph.nodes if identity.input[0] in n.output), None)
            if len(readers) == 1 and producer is not None:
                self.graph.nodes.remove(identity)
                producer.output[list(producer.output).index(identity.input[0])] = identity.output[0]

    def _tensor_info(self, name: str, node: fx.Node) -> onnx.ValueInfoProto:
        dtype = torch.empty(0, dtype=self.meanings[node].dtype).numpy().dtype
        return helper.make_tensor_value_info(
            name, helper.np_dtype_to_tensor_dtype(dtype), ["batch", *self.shapes[node][1:]]
        )

    def _emit(self, node: fx.Node) -> Any:
        if node.target is operator.getitem and not isinstance(self.names[node.all_input_nodes[0]], str):
            return self.names[node.all_input_nodes[0]][node.args[1]]  # one of several results
        written = len(self.graph.nodes)
        try:
            return self._known(node)
        except NoOnnxFormError:
            del self.graph.nodes[written:]
            return self._island(node)

    def _island(self, node: fx.Node) -> Any:
        """An operation that is not known here, as torch writes it."""
        name = _name(node)
        results = self.islands.write(node, self.names, self.two_sizes, name)
        meaning = self.meanings[node]
        if isinstance(meaning, Tensor) and meaning.is_floating_point() and self._reads_real_codes(node):
            # with slope 1 it changes nothing, and the runtime does not calculate the island on codes
            return self.graph.node("LeakyRelu", [results], name, alpha=1.0)
        return results

    def _reads_real_codes(self, node: fx.Node) -> bool:
        return any(name in self.real.values() for n in node.all_input_nodes for name in tree_leaves(self.names.get(n)))

    def _mixes_batch(self, node: fx.Node) -> bool:
        """Whether another axis than the first depends on the size of the batch."""
        if self.shapes[node][0] == len(self.examples[0]):
            return False
        twice, thrice = (meaning[node].shape[1:] for meaning in self.two_sizes)
        return twice != thrice

    def _known(self, node: fx.Node) -> str:
        if node.op == "call_module":
            module = self.model.get_submodule(str(node.target))
            writer = _WRITERS.get(type(module))
            if writer is not None:
                return writer(self, node, module)
            if isinstance(module, nn.AdaptiveAvgPool2d) and self.shapes[node] == self.shapes[node.all_input_nodes[0]]:
                return self._input(node)
            if isinstance(module, nn.Flatten):
                return self.reshape(self._input(node), self.shapes[node], _name(node))
            return self.float_layer(node, module)
        if node.target in (torch.flatten, torch.reshape, "flatten", "view", "reshape"):
            if self._mixes_batch(node):
                raise NoOnnxFormError(node.target, _name(node))
            return self.reshape(self._input(node), self.shapes[node], _name(node))
        if node.target in ("contiguous", "detach"):
            return self._input(node)
        if node.target in ("mean", torch.mean) and len(self.shapes[node.all_input_nodes[0]]) != 4:
            raise NoOnnxFormError(node.target, _name(node))
        if node.target in MOVES:
            return MOVES[node.target](
                self.graph, node, self._input(node), self.shapes[node.all_input_nodes[0]], _name(node)
            )
        tensors = [self.names[n] for n in node.all_input_nodes if n in self.names]  # and not sizes
        return write_float(self.graph, node.target, tensors, _name(node), node)

    def _input(self, node: fx.Node) -> str:
        return self.names[node.all_input_nodes[0]]

    # Codes and reals -------------------------------------------------------------------------------------------------

    def dequantized(self, codes: str, grid: Codes) -> str:
        """The float view of a uint8 tensor; one DequantizeLinear for all who read it."""
        if (codes, grid) not in self.real:
            self.real[codes, grid] = self.graph.node("DequantizeLinear", [codes, *self._qparams(grid)], f"{codes}_dq")
        return self.real[codes, grid]

    def quantized(self, real: str, grid: Codes, name: str) -> str:
        """QuantizeLinear, and a uint8 Clip where saturation at 0 and 255 is not the bound."""
        if grid.lowest == 0 and grid.highest == 255:
            return self.graph.node("QuantizeLinear", [real, *self._qparams(grid)], name)
        wide = self.graph.node("QuantizeLinear", [real, *self._qparams(grid)], f"{name}_wide")
        bounds = [self.graph.constant(np.array(b, dtype=np.uint8)) for b in (grid.lowest, grid.highest)]
        return self.graph.node("Clip", [wide, *bounds], name)

    def _qparams(self, grid: Codes) -> list[str]:
        scale = self.graph.constant(np.array(grid.scale, dtype=np.float32))
        return [scale, self.graph.constant(np.array(grid.zero_point, dtype=np.uint8))]

    def reshape(self, tensor: str, shape: tuple[int, ...], name: str) -> str:
        """Reshape to `shape` with a free first axis."""
        target = self.graph.constant(np.array([-1, *shape[1:]], dtype=np.int64))
        return self.graph.node("Reshape", [tensor, target], name)

    # Integer modules -------------------------------------------------------------------------------------------------

    def quantize(self, node: fx.Node, module: integer.Quantize) -> str:
        return self.quantized(self._input(node), module.output, _name(node))

    def dequantize(self, node: fx.Node, module: integer.Dequantize) -> str:
        return self.dequantized(self._input(node), module.input)

    def requantize(self, node: fx.Node, module: integer.Requantize) -> str:
        # LeakyRelu with slope 1 changes nothing; with it the runtime makes the three nodes one table of 256 codes, and
        # does not merge the two quantizations into one, which would change the result.
        real = self.dequantized(self._input(node), module.input)
        same = self.graph.node("LeakyRelu", [real], f"{_name(node)}_same", alpha=1.0)
        return self.quantized(same, module.output, _name(node))

    def look_up(self, node: fx.Node, module: integer.LookUp) -> str:
        index = self.graph.node("Cast", [self._input(node)], f"{_name(node)}_index", to=TensorProto.INT32)
        return self.graph.node("Gather", [self.graph.constant(module.table.numpy()), index], _name(node))

    def layer(self, node: fx.Node, module: integer.IntegerLayer, attributes: dict[str, Any] | None) -> str:
        """Conv, or Gemm where attributes is None."""
        name, shape = _name(node), self.shapes[node.all_input_nodes[0]]
        codes = self._input(node)
        flat = attributes is not None or len(shape) == 2
        if not flat:
            codes = self.reshape(codes, (-1, shape[-1]), f"{name}_rows")
        x = self.dequantized(codes, module.input)
        scale = self.graph.constant(module.unit_scale.numpy())
        weight = self.graph.stored_weight(module.weight.numpy(), f"{name}_weight", TensorProto.INT8, module.steps)
        # ONNX Runtime fuses Gemm only when the zero-points, although 0, are written out.
        # Left unfused, weights of a convolution are rewritten to uint8, with their zero-points: nobody else may have them.
        zeros = [np.int8, np.int32] if attributes is None else [np.int8] if module.output is None else []
        names = [f"{name}_weight_zero_point", f"{name}_bias_zero_point"]
        zero_points = [
            self.graph.own_constant(np.zeros(len(module.bias), t), n) for t, n in zip(zeros, names, strict=False)
        ]
        weight = self.graph.node("DequantizeLinear", [weight, scale, *zero_points[:1]], f"{name}_weight_dq", axis=0)
        unit = torch.tensor(module.input.scale) * module.unit_scale
        bias = [self.graph.constant(module.bias.numpy()), self.graph.constant(unit.numpy())]
        bias_real = self.graph.node("DequantizeLinear", [*bias, *zero_points[1:]], f"{name}_bias_dq", axis=0)
        end = name if flat else f"{name}_matrix"
        result = f"{end}_real" if module.output is not None else end
        if attributes is None:
            result = self.graph.node("Gemm", [x, weight, bias_real], result, transB=1)
        else:
            result = self.graph.node("Conv", [x, weight, bias_real], result, **attributes)
        if module.output is not None:
            result = self.quantized(result, module.output, end)
        return result if flat else self.reshape(result, self.shapes[node], name)

    def conv(self, node: fx.Node, module: integer.IntegerConv) -> str:
        return self.layer(node, module, self.of_convolution(module))

    def of_convolution(self, module: integer.IntegerConv) -> dict[str, Any]:
        """The attributes of Conv and ConvInteger."""
        before, after = module.padding
        return {
            "strides": list(module.stride),
            "dilations": list(module.dilation),
            "group": module.groups,
            "pads": [*before, *after],
            "kernel_shape": list(module.weight.shape[2:]),
        }

    def linear(self, node: fx.Node, module: integer.IntegerLinear) -> str:
        return self.layer(node, module, None)

    def add(self, node: fx.Node, module: integer.IntegerAdd) -> str:
        a, b = (self.names[n] for n in node.args if isinstance(n, fx.Node))
        reals = [self.dequantized(a, module.a), self.dequantized(b, module.b)]
        return self.quantized(self.graph.node("Add", reals, f"{_name(node)}_real"), module.output, _name(node))

    def cat(self, node: fx.Node, module: integer.IntegerCat) -> str:
        reals = [self.dequantized(self.names[n], x) for n, x in zip(node.all_input_nodes, module.inputs, strict=True)]
        joined = self.graph.node("Concat", reals, f"{_name(node)}_real", axis=module.dim)
        return self.quantized(joined, module.output, _name(node))

    def global_average(self, node: fx.Node, module: integer.IntegerGlobalAverage | integer.IntegerAveragePool) -> str:
        real = self.dequantized(self._input(node), module.input)
        mean = self.graph.node("GlobalAveragePool", [real], f"{_name(node)}_real")
        if getattr(module, "keepdim", True):
            return self.quantized(mean, module.output, _name(node))
        return self.reshape(self.quantized(mean, module.output, f"{_name(node)}_map"), self.shapes[node], _name(node))

    def average_pool(self, node: fx.Node, module: integer.IntegerAveragePool) -> str:
        if module.is_global(torch.Size(self.shapes[node.all_input_nodes[0]])):
            return self.global_average(node, module)
        real = self.dequantized(self._input(node), module.input)
        mean = self.graph.node(
            "AveragePool",
            [real],
            f"{_name(node)}_real",
            kernel_shape=list(module.kernel),
            strides=list(module.stride),
            pads=[*module.padding, *module.padding],
            count_include_pad=int(module.count_include_pad),
        )
        return self.quantized(mean, module.output, _name(node))

    def max_pool(self, node: fx.Node, module: integer.IntegerMaxPool) -> str:
        return self.graph.node(
            "MaxPool",
            [self._input(node)],
            _name(node),
            kernel_shape=list(module.kernel),
            strides=list(module.stride),
            pads=[*module.padding, *module.padding],
            dilations=list(module.dilation),
            ceil_mode=int(module.ceil_mode),
        )

    def pad(self, node: fx.Node, module: integer.IntegerPad) -> str:
        pads = pads_of_axes(module.pad, len(self.shapes[node]))
        zero = np.array(module.output.zero_point, dtype=np.uint8)
        return self.graph.node(
            "Pad", [self._input(node), self.graph.constant(pads), self.graph.constant(zero)], _name(node)
        )

    def dequantized_weight(self, module: integer.WeightOnlyLayer, name: str) -> str:
        """(codes - zero_point) * scale, as the module has it; the runtime calculates it once, when it loads.

        A DequantizeLinear would be calculated in every call, keep BatchNorm from being folded, and make ONNX Runtime replace
        matrix products by MatMulNBits, which rounds their inputs to 8 bits.
        """
        codes, scale, zero_point = module.weight, module.weight_scale, module.weight_zero_point
        real = self.graph.stored_weight(codes.reshape(module.view).numpy(), f"{name}_codes", TensorProto.FLOAT)
        if zero_point.any():
            real = self.graph.node("Sub", [real, self.graph.constant(zero_point.float().numpy())], f"{name}_centred")
        scaled = self.graph.node("Mul", [real, self.graph.constant(scale.numpy())], f"{name}_scaled")
        shape = self.graph.constant(np.array(codes.shape, dtype=np.int64))
        return scaled if codes.shape == module.view else self.graph.node("Reshape", [scaled, shape], name)

    def dynamic_quantize(self, node: fx.Node, module: integer.DynamicQuantize) -> str:
        """Codes, with the tensors NAME_scale and NAME_zero_point beside them."""
        name = _name(node)
        return self.graph.node(
            "DynamicQuantizeLinear", [self._input(node)], name, further=[f"{name}_scale", f"{name}_zero_point"]
        )

    def dynamic_layer(self, node: fx.Node, module: integer.DynamicLayer) -> str:
        name, codes, layer = _name(node), self._input(node), module.layer
        scale, zero_point = f"{codes}_scale", f"{codes}_zero_point"
        multiplier, bias = (
            self.graph.constant(layer.per_channel(p).numpy()) for p in (layer.weight_scale, module.bias)
        )
        if isinstance(layer, integer.IntegerConv):
            weight = self.graph.stored_weight(layer.weight.numpy(), f"{name}_weight", TensorProto.INT8)
            attributes = self.of_convolution(layer)
            products = self.graph.node("ConvInteger", [codes, weight, zero_point], f"{name}_products", **attributes)
        else:
            weight = self.graph.stored_weight(layer.weight.T.contiguous().numpy(), f"{name}_weight", TensorProto.INT8)
            products = self.graph.node("MatMulInteger", [codes, weight, zero_point], f"{name}_products")
        real = self.graph.node("Cast", [products], f"{name}_real", to=TensorProto.FLOAT)
        unit = self.graph.node("Mul", [scale, multiplier], f"{name}_unit")
        return self.graph.node("Add", [self.graph.node("Mul", [real, unit], f"{name}_scaled"), bias], name)

    def dynamic_rounding(self, node: fx.Node, module: Dynamic) -> str:
        name = _name(node)
        codes = self.graph.node(
            "DynamicQuantizeLinear",
            [self._input(node)],
            f"{name}_codes",
            further=[f"{name}_scale", f"{name}_zero_point"],
        )
        return self.graph.node("DequantizeLinear", [codes, f"{name}_scale", f"{name}_zero_point"], name)

    def weight_only(self, node: fx.Node, module: integer.WeightOnlyLayer) -> str:
        return self.float_layer(node, module.layer, self.dequantized_weight(module, f"{_name(node)}_weight"))

    def float_layer(self, node: fx.Node, module: nn.Module, weight: str | None = None) -> str:
        """A module that calculates in float, with this weight instead of its own."""
        inputs, name = [self.names[n] for n in node.all_input_nodes], _name(node)
        if not (isinstance(module, nn.Conv1d | nn.Conv2d | nn.Linear) and self._reads_real_codes(node)):
            return write_float(self.graph, module, inputs, name, weight=weight)
        # Between dequantized codes and QuantizeLinear the runtime would round weights and bias to 8 and 32 bits. LeakyRelu
        # with slope 1 changes nothing, stands between, and is calculated together with the layer.
        result = write_float(self.graph, module, inputs, f"{name}_float", weight=weight)
        return self.graph.node("LeakyRelu", [result], name, alpha=1.0)


def _has_tensors(meaning: Any) -> bool:
    return any(isinstance(leaf, Tensor) for leaf in tree_leaves(meaning))


def _name(node: fx.Node) -> str:
    """The tensor that a node makes: sites and layers keep their own name; nothing else can have it."""
    return str(node.target) if node.op == "call_module" else f"{node.name}.{node.op}"


_WRITERS: dict[type[nn.Module], Callable[[_Exporter, fx.Node, Any], str]] = {
    integer.Quantize: _Exporter.quantize,
    integer.Dequantize: _Exporter.dequantize,
    integer.Requantize: _Exporter.requantize,
    integer.LookUp: _Exporter.look_up,
    integer.IntegerConv: _Exporter.conv,
    integer.IntegerLinear: _Exporter.linear,
    integer.IntegerAdd: _Exporter.add,
    integer.IntegerCat: _Exporter.cat,
    integer.IntegerGlobalAverage: _Exporter.global_average,
    integer.IntegerAveragePool: _Exporter.average_pool,
    integer.IntegerMaxPool: _Exporter.max_pool,
    integer.IntegerPad: _Exporter.pad,
    integer.WeightOnlyLayer: _Exporter.weight_only,
    integer.DynamicQuantize: _Exporter.dynamic_quantize,
    integer.DynamicLayer: _Exporter.dynamic_layer,
    Dynamic: _Exporter.dynamic_rounding,
}
"""One line per integer module."""
