"""ONNX forms of the integer modules without weights, in `qat/integer/modules.py`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from onnx import TensorProto
from torch import fx, nn

from qat.export.onnx.data_movement import pads_of_axes
from qat.export.onnx.qdq_graph import QdqGraph, tensor_name
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
from qat.quantizers import Dynamic


def write_quantize(graph: QdqGraph, node: fx.Node, module: Quantize) -> str:
    """Write the integer module for quantize; returns the name of its result."""
    return graph.quantized(graph.input(node), module.output, tensor_name(node))


def write_dequantize(graph: QdqGraph, node: fx.Node, module: Dequantize) -> str:
    """Write the integer module for dequantize; returns the name of its result."""
    return graph.dequantized(graph.input(node), module.input)


def write_requantize(graph: QdqGraph, node: fx.Node, module: Requantize) -> str:
    # What stands between makes the runtime turn the three nodes into one table of 256 codes. Without it the runtime merges
    # the two quantizations into one, which changes the result.
    """Write the integer module for requantize; returns the name of its result."""
    real = graph.dequantized(graph.input(node), module.input)
    return graph.quantized(graph.unchanged(real, f"{tensor_name(node)}_same"), module.output, tensor_name(node))


def write_look_up(graph: QdqGraph, node: fx.Node, module: LookUp) -> str:
    """Write the integer module for look up; returns the name of its result."""
    index = graph.node("Cast", [graph.input(node)], f"{tensor_name(node)}_index", to=TensorProto.INT32)
    return graph.node("Gather", [graph.constant(module.table.numpy()), index], tensor_name(node))


def write_add(graph: QdqGraph, node: fx.Node, module: IntegerAdd) -> str:
    """Write the integer module for add; returns the name of its result."""
    a, b = (graph.names[n] for n in node.args if isinstance(n, fx.Node))
    reals = [graph.dequantized(a, module.a), graph.dequantized(b, module.b)]
    return graph.quantized(graph.node("Add", reals, f"{tensor_name(node)}_real"), module.output, tensor_name(node))


def write_cat(graph: QdqGraph, node: fx.Node, module: IntegerCat) -> str:
    """Write the integer module for cat; returns the name of its result."""
    reals = [graph.dequantized(graph.names[n], x) for n, x in zip(node.all_input_nodes, module.inputs, strict=True)]
    joined = graph.node("Concat", reals, f"{tensor_name(node)}_real", axis=module.dim)
    return graph.quantized(joined, module.output, tensor_name(node))


def write_global_average(graph: QdqGraph, node: fx.Node, module: IntegerGlobalAverage | IntegerAveragePool) -> str:
    """Write the integer module for global average; returns the name of its result."""
    name = tensor_name(node)
    real = graph.dequantized(graph.input(node), module.input)
    mean = graph.node("GlobalAveragePool", [real], f"{name}_real")
    if getattr(module, "keepdim", True):
        return graph.quantized(mean, module.output, name)
    return graph.reshape(graph.quantized(mean, module.output, f"{name}_map"), graph.shapes[node], name)


def write_average_pool(graph: QdqGraph, node: fx.Node, module: IntegerAveragePool) -> str:
    """Write the integer module for average pool; returns the name of its result."""
    if module.is_global(torch.Size(graph.input_shape(node))):
        return write_global_average(graph, node, module)
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


def write_max_pool(graph: QdqGraph, node: fx.Node, module: IntegerMaxPool) -> str:
    """Write the integer module for max pool; returns the name of its result."""
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


def write_pad(graph: QdqGraph, node: fx.Node, module: IntegerPad) -> str:
    """Write the integer module for pad; returns the name of its result."""
    pads = graph.constant(pads_of_axes(module.pad, len(graph.shapes[node])))
    zero_point = graph.constant(np.array(module.output.zero_point, dtype=np.uint8))
    return graph.node("Pad", [graph.input(node), pads, zero_point], tensor_name(node))


def write_dynamic_quantize(graph: QdqGraph, node: fx.Node, module: DynamicQuantize) -> str:
    """Codes, beside the tensors NAME_scale and NAME_zero_point."""
    return _dynamic_codes(graph, node, tensor_name(node))


def write_dynamic_fake_quantize(graph: QdqGraph, node: fx.Node, module: Dynamic) -> str:
    """Write the integer module for dynamic fake quantize; returns the name of its result."""
    name = tensor_name(node)
    codes = _dynamic_codes(graph, node, f"{name}_codes")
    return graph.node("DequantizeLinear", [codes, f"{name}_scale", f"{name}_zero_point"], name)


def _dynamic_codes(graph: QdqGraph, node: fx.Node, codes: str) -> str:
    name = tensor_name(node)
    qparams = [f"{name}_scale", f"{name}_zero_point"]
    return graph.node("DynamicQuantizeLinear", [graph.input(node)], codes, more_outputs=qparams)


OPERATIONS: dict[type[nn.Module], Callable[[QdqGraph, fx.Node, Any], str]] = {
    Quantize: write_quantize,
    Dequantize: write_dequantize,
    Requantize: write_requantize,
    LookUp: write_look_up,
    IntegerAdd: write_add,
    IntegerCat: write_cat,
    IntegerGlobalAverage: write_global_average,
    IntegerAveragePool: write_average_pool,
    IntegerMaxPool: write_max_pool,
    IntegerPad: write_pad,
    DynamicQuantize: write_dynamic_quantize,
    Dynamic: write_dynamic_fake_quantize,
}
