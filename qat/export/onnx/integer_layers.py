"""ONNX forms of the layers in `qat/integer/layers.py`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from onnx import TensorProto
from torch import fx, nn

from qat.export.onnx.float_operations import write_float_module
from qat.export.onnx.qdq_graph import QdqGraph, tensor_name
from qat.export.onnx.scaled_floats import dequantized_floats
from qat.integer.layers import DynamicLayer, IntegerConv, IntegerConvTranspose, IntegerLayer, IntegerLinear
from qat.integer.weight_only import StoredMatrix, StoredWeight, WeightOnlyLayer
from qat.nn import Convolution


def write_convolution(graph: QdqGraph, node: fx.Node, layer: IntegerConv) -> str:
    """Conv between DequantizeLinear and QuantizeLinear; returns the name of its codes, or floats if it has no output grid."""
    name = tensor_name(node)
    x = graph.dequantized(graph.input(node), layer.input)
    # Unfused, because no QuantizeLinear follows, the weight is rewritten to uint8 by the runtime, with its zero-point.
    zero_points = {"weight": np.int8} if layer.output is None else {}
    weights = _dequantized_weights(graph, name, layer, zero_points)
    return _quantized_output(graph, "Conv", [x, *weights], layer, name, **_convolution_attributes(layer))


def write_transposed_convolution(graph: QdqGraph, node: fx.Node, layer: IntegerConvTranspose) -> str:
    """A transposed convolution as Conv of the codes with zeros between them; returns the name of its codes or floats."""
    name = tensor_name(node)
    spread = _with_zeros(graph, graph.input(node), graph.input_shape(node), layer, name)
    x = graph.dequantized(spread, layer.input)
    weights = _dequantized_weights(graph, name, layer, {"weight": np.int8} if layer.output is None else {})
    return _quantized_output(graph, "Conv", [x, *weights], layer, name, **_convolution_attributes(layer))


def _with_zeros(graph: QdqGraph, codes: str, shape: tuple[int, ...], layer: IntegerConvTranspose, name: str) -> str:
    """Codes of zero between two neighbours on every spatial axis: pad a new axis behind each, merge the two, cut the end."""
    if max(layer.insert) == 1:
        return codes
    axes = len(layer.insert)

    def numbers(values: Sequence[int]) -> str:
        return graph.constant(np.array(values, dtype=np.int64))

    behind_each = numbers([3 + 2 * axis for axis in range(axes)])
    split = graph.node("Unsqueeze", [codes, behind_each], f"{name}_split")
    more = [0, 0] + [n for step in layer.insert for n in (0, step - 1)]
    zero_point = graph.constant(np.array(layer.input.zero_point, dtype=np.uint8))
    padded = graph.node("Pad", [split, numbers([0] * len(more) + more), zero_point], f"{name}_padded")
    sizes = graph.node("Shape", [codes], f"{name}_sizes")
    wide = graph.node("Mul", [sizes, numbers([1, 1, *layer.insert])], f"{name}_wide_sizes")
    merged = graph.node("Reshape", [padded, wide], f"{name}_merged")
    ends = numbers([np.iinfo(np.int64).max if step == 1 else 1 - step for step in layer.insert])
    spatial = numbers(range(2, 2 + axes))
    return graph.node("Slice", [merged, numbers([0] * axes), ends, spatial], f"{name}_spread")


def write_linear(graph: QdqGraph, node: fx.Node, layer: IntegerLinear) -> str:
    """Gemm of the rows of a tensor of any rank; returns the name of its codes or floats."""
    name, shape, codes = tensor_name(node), graph.input_shape(node), graph.input(node)
    is_matrix, given = len(shape) == 2, codes
    if not is_matrix:
        codes = graph.reshape(codes, (-1, shape[-1]), f"{name}_rows")
    x = graph.dequantized(codes, layer.input)
    # The runtime fuses Gemm only if the zero-points, although 0, are written out.
    weights = _dequantized_weights(graph, name, layer, {"weight": np.int8, "bias": np.int32})
    matrix = _quantized_output(graph, "Gemm", [x, *weights], layer, name if is_matrix else f"{name}_matrix", transB=1)
    return matrix if is_matrix else graph.reshape(matrix, graph.shapes[node], name, like=given)


def _dequantized_weights(
    graph: QdqGraph, name: str, layer: IntegerLayer, zero_points: dict[str, type[np.signedinteger[Any]]]
) -> list[str]:
    """Weight and bias behind DequantizeLinear. zero_points: dtype of those that are written out."""
    scale = graph.constant(layer.unit_scale.numpy())
    weight = graph.stored_weight(layer.weight.numpy(), f"{name}_weight", TensorProto.INT8, layer.product_units)
    zeros = {  # not shared with other layers: the runtime may rewrite them
        tensor: [graph.unshared_constant(np.zeros(len(layer.bias), dtype), f"{name}_{tensor}_zero_point")]
        for tensor, dtype in zero_points.items()
    }
    weight = graph.node("DequantizeLinear", [weight, scale, *zeros.get("weight", [])], f"{name}_weight_dq", axis=0)
    unit = torch.tensor(layer.input.scale) * layer.unit_scale
    bias = [graph.constant(layer.bias.numpy()), graph.constant(unit.numpy())]
    return [weight, graph.node("DequantizeLinear", [*bias, *zeros.get("bias", [])], f"{name}_bias_dq", axis=0)]


def _quantized_output(
    graph: QdqGraph, operation: str, inputs: list[str], layer: IntegerLayer, name: str, **attributes: Any
) -> str:
    if layer.output is None:
        return graph.node(operation, inputs, name, **attributes)
    return graph.quantized(graph.node(operation, inputs, f"{name}_real", **attributes), layer.output, name)


def _convolution_attributes(layer: IntegerConv) -> dict[str, Any]:
    """The attributes of Conv and ConvInteger."""
    before, after = layer.padding
    return {
        "strides": list(layer.stride),
        "dilations": list(layer.dilation),
        "group": layer.groups,
        "pads": [*before, *after],
        "kernel_shape": list(layer.weight.shape[2:]),
    }


def write_dynamic_layer(graph: QdqGraph, node: fx.Node, dynamic: DynamicLayer) -> str:
    """ConvInteger or MatMulInteger of codes on a dynamic range, scaled to floats; returns their name."""
    name, codes, layer = tensor_name(node), graph.input(node), dynamic.layer
    scale, zero_point = graph.dynamic_qparams[codes]
    weight_scale, bias = (graph.constant(layer.per_channel(p).numpy()) for p in (layer.weight_scale, dynamic.bias))
    if isinstance(layer, IntegerConv):
        operation, stored, attributes = "ConvInteger", layer.weight, _convolution_attributes(layer)
    else:
        operation, stored, attributes = "MatMulInteger", layer.weight.T.contiguous(), {}
    weight = graph.stored_weight(stored.numpy(), f"{name}_weight", TensorProto.INT8)
    products = graph.node(operation, [codes, weight, zero_point], f"{name}_products", **attributes)
    real = graph.node("Cast", [products], f"{name}_real", to=TensorProto.FLOAT)
    if dynamic.per_token:
        of_weights = graph.node("Mul", [real, weight_scale], f"{name}_of_weights")
        return graph.node("Add", [graph.node("Mul", [of_weights, scale], f"{name}_scaled"), bias], name)
    unit = graph.node("Mul", [scale, weight_scale], f"{name}_unit")
    return graph.node("Add", [graph.node("Mul", [real, unit], f"{name}_scaled"), bias], name)


def write_weight_only_layer(graph: QdqGraph, node: fx.Node, module: WeightOnlyLayer) -> str:
    """The float layer, with a weight that is dequantized once; returns the name of its result."""
    weight = dequantized_once(graph, module, f"{tensor_name(node)}_weight")
    return write_float_layer(graph, node, module.layer, weight)


def write_stored_matrix(graph: QdqGraph, node: fx.Node, module: StoredMatrix) -> str:
    """A stored matrix; returns the name of its float values."""
    return dequantized_once(graph, module, tensor_name(node))


def dequantized_once(graph: QdqGraph, module: StoredWeight, name: str) -> str:
    """(codes - zero_point) * scale, as the module computes it; the runtime does so once, when it loads the file.

    A DequantizeLinear would be computed in every call, keep BatchNorm from being folded, and make ONNX Runtime replace
    matrix products by MatMulNBits, which rounds their inputs to 8 bits.
    """
    if module.scaled_float is not None:
        return dequantized_floats(graph, module.codes, module.scaled_float, name)
    codes, scale, zero_point = module.codes, module.weight_scale, module.weight_zero_point
    real = graph.stored_weight(codes.reshape(module.view).numpy(), f"{name}_codes", TensorProto.FLOAT)
    if zero_point.any():
        real = graph.node("Sub", [real, graph.constant(zero_point.float().numpy())], f"{name}_centred")
    scaled = graph.node("Mul", [real, graph.constant(scale.numpy())], f"{name}_scaled")
    shape = graph.constant(np.array(codes.shape, dtype=np.int64))
    return scaled if codes.shape == module.view else graph.node("Reshape", [scaled, shape], name)


def write_float_layer(graph: QdqGraph, node: fx.Node, layer: nn.Module, weight: str | None = None) -> str:
    """A layer in float; returns the name of its result. weight: name of a tensor to use instead of the layer's own weight."""
    inputs, name = graph.inputs(node), tensor_name(node)
    if not (isinstance(layer, nn.Conv1d | nn.Conv2d | nn.Linear) and graph.reads_dequantized(node)):
        return write_float_module(graph, layer, inputs, name, weight)
    # Between DequantizeLinear and QuantizeLinear the runtime would round weights and bias to 8 and 32 bits. What stands
    # between here is computed together with the layer.
    return graph.unchanged(write_float_module(graph, layer, inputs, f"{name}_float", weight), name)


def check_has_samples(graph: QdqGraph, node: fx.Node, module: nn.Module) -> None:
    """Refuse convolutions of one sample without an axis of samples, [C, H, W]: torch has them, ONNX has not.

    Raises:
        ValueError: the module is one.
    """
    convolution = getattr(module, "layer", module)
    if not isinstance(convolution, IntegerConv | Convolution):
        return
    weight, shape = convolution.weight, graph.input_shape(node)
    if len(shape) < weight.ndim:
        raise ValueError(
            f"{tensor_name(node)!r} gets a tensor of shape {tuple(shape)}, which has no axis of samples, and ONNX convolves "
            "batches alone: let the network take batches, x[None] for one sample."
        )


LAYERS: dict[type[nn.Module], Callable[[QdqGraph, fx.Node, Any], str]] = {
    IntegerConv: write_convolution,
    IntegerConvTranspose: write_transposed_convolution,
    IntegerLinear: write_linear,
    DynamicLayer: write_dynamic_layer,
    WeightOnlyLayer: write_weight_only_layer,
    StoredMatrix: write_stored_matrix,
}
