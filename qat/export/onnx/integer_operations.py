"""ONNX forms of the integer modules without weights, in `qat/integer/modules.py`. A writer returns the name of the result."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from onnx import TensorProto
from torch import fx, nn

from qat.export.onnx.data_movement import pads_of_axes
from qat.export.onnx.qdq_graph import QdqGraph, tensor_name
from qat.export.onnx.scaled_floats import refuse_input, write_static_floats
from qat.integer import modules
from qat.quantizers import FP8, MX, NVFP4, Dynamic, DynamicPerToken, FP8Static

RATIOS_OF_AVERAGES = 2.0**-32, 256.0
"""What ONNX Runtime's global average multiplies its sums by. Another factor is refused when the file runs, and crashes the
process."""


def write_quantize(graph: QdqGraph, node: fx.Node, module: modules.Quantize) -> str:
    """QuantizeLinear, and a Clip of the codes if they are narrower than 8 bits."""
    return graph.quantized(graph.input(node), module.output, tensor_name(node))


def write_dequantize(graph: QdqGraph, node: fx.Node, module: modules.Dequantize) -> str:
    """DequantizeLinear."""
    return graph.dequantized(graph.input(node), module.input)


def write_requantize(graph: QdqGraph, node: fx.Node, module: modules.Requantize) -> str:
    """DequantizeLinear, an operation that changes nothing, and QuantizeLinear to the other grid.

    Because of the operation between them, the runtime turns the three nodes into one table of 256 codes. Without it, it would
    merge the two quantizations into one, which changes the result.
    """
    real = graph.dequantized(graph.input(node), module.input)
    return graph.quantized(graph.unchanged(real, f"{tensor_name(node)}_same"), module.output, tensor_name(node))


def write_look_up(graph: QdqGraph, node: fx.Node, module: modules.LookUp) -> str:
    """A table of 256 codes, by Gather."""
    index = graph.node("Cast", [graph.input(node)], f"{tensor_name(node)}_index", to=TensorProto.INT32)
    return graph.node("Gather", [graph.constant(module.table.numpy()), index], tensor_name(node))


def write_add(graph: QdqGraph, node: fx.Node, module: modules.IntegerAdd) -> str:
    """Add of two dequantized tensors, quantized."""
    a, b = (graph.names[n] for n in node.args if isinstance(n, fx.Node))
    reals = [graph.dequantized(a, module.a), graph.dequantized(b, module.b)]
    return graph.quantized(graph.node("Add", reals, f"{tensor_name(node)}_real"), module.output, tensor_name(node))


def write_multiply(graph: QdqGraph, node: fx.Node, module: modules.IntegerMultiply | modules.IntegerMatMul) -> str:
    """Mul or MatMul of two dequantized tensors, quantized."""
    a, b = (graph.names[n] for n in node.args if isinstance(n, fx.Node))
    reals = [graph.dequantized(a, module.a), graph.dequantized(b, module.b)]
    operation = "Mul" if isinstance(module, modules.IntegerMultiply) else "MatMul"
    return graph.quantized(graph.node(operation, reals, f"{tensor_name(node)}_real"), module.output, tensor_name(node))


def write_cat(graph: QdqGraph, node: fx.Node, module: modules.IntegerCat) -> str:
    """Concat of dequantized parts, quantized; of parts with a new axis if they are stacked."""
    name = tensor_name(node)
    parts = [graph.names[n] for n in node.args if isinstance(n, fx.Node)]
    reals = [graph.dequantized(part, x) for part, x in zip(parts, module.inputs, strict=True)]
    if module.stacked:
        axes = graph.constant(np.array([module.dim], dtype=np.int64))
        reals = [graph.node("Unsqueeze", [real, axes], f"{name}_part_{i}") for i, real in enumerate(reals)]
    joined = graph.node("Concat", reals, f"{name}_real", axis=module.dim)
    return graph.quantized(joined, module.output, name)


def write_mean(graph: QdqGraph, node: fx.Node, module: modules.IntegerMean) -> str:
    """The mean or the sum over axes, from the sum of the codes in int32; over all of an image, GlobalAveragePool."""
    shape = graph.input_shape(node)
    if module.is_global(len(shape)):
        return _global_average(graph, node, module, module.keepdim)
    name, axes = tensor_name(node), graph.constant(np.array(module.axes(len(shape)), dtype=np.int64))
    wide = graph.node("Cast", [graph.input(node)], f"{name}_int32", to=TensorProto.INT32)
    total = graph.node("ReduceSum", [wide, axes], f"{name}_sum", keepdims=int(module.keepdim))
    sizes = graph.node("Gather", [graph.node("Shape", [wide], f"{name}_shape"), axes], f"{name}_sizes")
    count = graph.node("ReduceProd", [sizes], f"{name}_count", keepdims=0)
    zero_point = graph.constant(np.array(module.input.zero_point, dtype=np.int32))
    count_int = graph.node("Cast", [count], f"{name}_count_int32", to=TensorProto.INT32)
    zeros = graph.node("Mul", [count_int, zero_point], f"{name}_zeros")
    centred = graph.node("Sub", [total, zeros], f"{name}_centred")
    scale = graph.constant(np.array(module.input.scale, dtype=np.float32))
    if not module.total:
        count_float = graph.node("Cast", [count], f"{name}_count_float", to=TensorProto.FLOAT)
        scale = graph.node("Div", [scale, count_float], f"{name}_scale")
    real = graph.node(
        "Mul", [graph.node("Cast", [centred], f"{name}_float", to=TensorProto.FLOAT), scale], f"{name}_real"
    )
    return graph.quantized(real, module.output, name)


def _global_average(
    graph: QdqGraph, node: fx.Node, module: modules.IntegerMean | modules.IntegerAveragePool, keepdim: bool
) -> str:
    name = tensor_name(node)
    ratio = module.input.scale / (module.output.scale * math.prod(graph.input_shape(node)[2:]))
    if not RATIOS_OF_AVERAGES[0] <= ratio < RATIOS_OF_AVERAGES[1]:
        raise ValueError(
            f"the scales of {name!r} are too far apart, {module.input.scale:g} of its input and {module.output.scale:g} of its "
            "output: calibrate it with other data, or lower the learning rate of the training that learned them."
        )
    real = graph.dequantized(graph.input(node), module.input)
    mean = graph.node("GlobalAveragePool", [real], f"{name}_real")
    if keepdim:
        return graph.quantized(mean, module.output, name)
    return graph.reshape(graph.quantized(mean, module.output, f"{name}_map"), graph.shapes[node], name)


def write_average_pool(graph: QdqGraph, node: fx.Node, module: modules.IntegerAveragePool) -> str:
    """AveragePool of dequantized codes, quantized; GlobalAveragePool if one window covers an image."""
    if module.is_global(torch.Size(graph.input_shape(node))):
        return _global_average(graph, node, module, keepdim=True)
    real = graph.dequantized(graph.input(node), module.input)
    mean = graph.node(
        "AveragePool",
        [real],
        f"{tensor_name(node)}_real",
        kernel_shape=list(module.kernel),
        strides=list(module.stride),
        pads=[*module.padding, *module.padding],
        count_include_pad=int(module.count_include_pad),
    )
    return graph.quantized(mean, module.output, tensor_name(node))


def write_max_pool(graph: QdqGraph, node: fx.Node, module: modules.IntegerMaxPool) -> str:
    """MaxPool of the codes themselves."""
    return graph.node(
        "MaxPool",
        [graph.input(node)],
        tensor_name(node),
        kernel_shape=list(module.kernel),
        strides=list(module.stride),
        pads=[*module.padding, *module.padding],
        dilations=list(module.dilation),
        ceil_mode=int(module.ceil_mode),
    )


def write_pad(graph: QdqGraph, node: fx.Node, module: modules.IntegerPad) -> str:
    """Pad of the codes with the zero-point."""
    pads = graph.constant(pads_of_axes(module.pad, len(graph.shapes[node])))
    zero_point = graph.constant(np.array(module.output.zero_point, dtype=np.uint8))
    return graph.node("Pad", [graph.input(node), pads, zero_point], tensor_name(node))


def write_dynamic_quantize(graph: QdqGraph, node: fx.Node, module: modules.DynamicQuantize) -> str:
    """Codes on a range of their own; `graph.dynamic_qparams` names their scale and zero-point."""
    write = _token_codes if module.per_token else _dynamic_codes
    return write(graph, node, tensor_name(node))


def write_dynamic_fake_quantize(graph: QdqGraph, node: fx.Node, module: Dynamic) -> str:
    """The values of codes on a range of their own, in float."""
    name = tensor_name(node)
    if isinstance(module, DynamicPerToken):
        codes = _token_codes(graph, node, f"{name}_codes")
        wide = graph.node("Cast", [codes], f"{name}_wide", to=TensorProto.FLOAT)
        centred = graph.node("Sub", [wide, graph.constant(np.array(128, dtype=np.float32))], f"{name}_centred")
        return graph.node("Mul", [centred, graph.dynamic_qparams[codes][0]], name)
    codes = _dynamic_codes(graph, node, f"{name}_codes")
    return graph.node("DequantizeLinear", [codes, *graph.dynamic_qparams[codes]], name)


def _dynamic_codes(graph: QdqGraph, node: fx.Node, codes: str) -> str:
    name = tensor_name(node)
    qparams = [f"{name}_scale", f"{name}_zero_point"]
    codes = graph.node("DynamicQuantizeLinear", [graph.input(node)], codes, more_outputs=qparams)
    graph.dynamic_qparams[codes] = list(graph.nodes[-1].output[1:])
    return codes


def _token_codes(graph: QdqGraph, node: fx.Node, codes: str) -> str:
    name, x = tensor_name(node), graph.input(node)

    def number(value: float) -> str:
        return graph.constant(np.array(value, dtype=np.float32))

    last = graph.constant(np.array([-1], dtype=np.int64))
    largest = graph.node(
        "ReduceMax", [graph.node("Abs", [x], f"{name}_magnitude"), last], f"{name}_largest", keepdims=1
    )
    divided = graph.node("Div", [largest, number(127)], f"{name}_unit")
    scale = graph.node("Max", [divided, number(float(np.finfo(np.float32).tiny))], f"{name}_scale")
    rounded = graph.node("Round", [graph.node("Div", [x, scale], f"{name}_divided")], f"{name}_rounded")
    shifted = graph.node("Add", [rounded, number(128)], f"{name}_shifted")
    bounded = graph.node("Clip", [shifted, number(1), number(255)], f"{name}_bounded")
    codes = graph.node("Cast", [bounded], codes, to=TensorProto.UINT8)
    zero_point = graph.unshared_constant(np.array(128, dtype=np.uint8), f"{name}_zero_point")
    graph.dynamic_qparams[codes] = [scale, zero_point]
    return codes


OPERATIONS: dict[type[nn.Module], Callable[[QdqGraph, fx.Node, Any], str]] = {
    modules.Quantize: write_quantize,
    modules.Dequantize: write_dequantize,
    modules.Requantize: write_requantize,
    modules.LookUp: write_look_up,
    modules.IntegerAdd: write_add,
    modules.IntegerCat: write_cat,
    modules.IntegerMultiply: write_multiply,
    modules.IntegerMatMul: write_multiply,
    modules.IntegerMean: write_mean,
    modules.IntegerAveragePool: write_average_pool,
    modules.IntegerMaxPool: write_max_pool,
    modules.IntegerPad: write_pad,
    modules.DynamicQuantize: write_dynamic_quantize,
    Dynamic: write_dynamic_fake_quantize,
    DynamicPerToken: write_dynamic_fake_quantize,
    FP8: refuse_input,
    FP8Static: write_static_floats,
    MX: refuse_input,
    NVFP4: refuse_input,
}
