"""ONNX forms of the most common operations that stay in float; `torch_onnx.py` writes all others."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from qat.export.onnx.graph_writer import GraphWriter, NoOnnxFormError
from qat.export.onnx.qdq_graph import QdqGraph, tensor_name
from qat.nn import explicit_padding, is_identity_in_evaluation
from qat.operations import Concatenate, Mean, call_of
from qat.torch_private import BatchNorm

ELEMENTWISE: dict[Any, str] = {
    **dict.fromkeys((nn.ReLU, F.relu, torch.relu, "relu"), "Relu"),
    **dict.fromkeys((nn.Sigmoid, torch.sigmoid, F.sigmoid, "sigmoid"), "Sigmoid"),
    **dict.fromkeys((nn.Tanh, torch.tanh, "tanh"), "Tanh"),
    **dict.fromkeys((nn.Hardswish, F.hardswish), "HardSwish"),
    **dict.fromkeys((operator.add, operator.iadd, torch.add, "add", "add_"), "Add"),
    **dict.fromkeys((operator.mul, operator.imul, torch.mul, "mul"), "Mul"),
}
AS_MODULES: dict[Any, Callable[..., nn.Module]] = {
    F.relu6: nn.ReLU6,
    F.silu: nn.SiLU,
    F.gelu: nn.GELU,
    F.max_pool2d: nn.MaxPool2d,
    F.avg_pool2d: nn.AvgPool2d,
    F.adaptive_avg_pool2d: nn.AdaptiveAvgPool2d,
}
"""Functions whose arguments after the first are those of a module."""


def write_float_function(graph: QdqGraph, node: fx.Node) -> str:
    """Write a call of a function or method; return the name of its result.

    Raises:
        NoOnnxFormError: it has no writer here.
    """
    function, inputs, name = node.target, graph.inputs(node), tensor_name(node)
    if function in ELEMENTWISE and len(inputs) == len(node.args) and not node.kwargs:
        return graph.node(ELEMENTWISE[function], inputs, name)
    if function in AS_MODULES:
        options = {
            k: v for k, v in call_of(nn.Module(), node).arguments.items() if k not in ("input", "inplace") and v != []
        }
        if len(node.all_input_nodes) > 1:  # a window as large as another tensor
            raise NoOnnxFormError(function, name)
        return write_float_module(graph, AS_MODULES[function](**options), inputs, name)
    operation = graph.operations[node]
    if isinstance(operation, Concatenate) and not operation.stacked:
        return graph.node("Concat", [graph.names[n] for n in operation.inputs], name, axis=operation.dim)
    if isinstance(operation, Mean) and not operation.total:
        axes = graph.constant(np.array(operation.dims, dtype=np.int64))
        return graph.node("ReduceMean", [*inputs, axes], name, keepdims=int(operation.keepdim))
    if getattr(function, "__name__", str(function)).startswith("hstack"):
        axis = 0 if len(graph.input_shape(node)) == 1 else 1
        return graph.node("Concat", inputs, name, axis=axis)
    raise NoOnnxFormError(function, name)


def write_float_module(
    graph: GraphWriter, module: nn.Module, inputs: list[str], name: str, weight: str | None = None
) -> str:
    """Write a call of a module; return the name of its result.

    Args:
        graph: the graph to add nodes to.
        module: any module.
        inputs: names of its inputs.
        name: name of its result.
        weight: name of a tensor to use instead of the module's own weight.

    Raises:
        NoOnnxFormError: it has no writer here.
    """
    if type(module) in ELEMENTWISE:
        return graph.node(ELEMENTWISE[type(module)], inputs, name)
    if is_identity_in_evaluation(module):
        return inputs[0]
    if isinstance(module, nn.Conv1d | nn.Conv2d):
        return _write_convolution(graph, module, inputs, name, weight)
    if isinstance(module, nn.Linear):
        return _write_linear(graph, module, inputs, name, weight)
    for kind, writer in MODULES.items():
        if isinstance(module, kind):
            return writer(graph, module, inputs, name)
    raise NoOnnxFormError(module, name)


def _write_convolution(
    graph: GraphWriter, conv: nn.Conv1d | nn.Conv2d, inputs: list[str], name: str, weight: str | None
) -> str:
    before, after = explicit_padding(conv)
    return graph.node(
        "Conv",
        [*inputs, weight or _parameter(graph, conv.weight), *_bias(graph, conv)],
        name,
        strides=list(conv.stride),
        pads=[*before, *after],
        dilations=list(conv.dilation),
        group=conv.groups,
        kernel_shape=list(conv.kernel_size),
    )


def _write_linear(graph: GraphWriter, linear: nn.Linear, inputs: list[str], name: str, weight: str | None) -> str:
    matrix = weight or _parameter(graph, linear.weight)
    transposed = graph.node("Transpose", [matrix], f"{name}_turned", perm=[1, 0])
    if linear.bias is None:
        return graph.node("MatMul", [*inputs, transposed], name)
    product = graph.node("MatMul", [*inputs, transposed], f"{name}_product")
    return graph.node("Add", [product, *_bias(graph, linear)], name)


def _write_relu6(graph: GraphWriter, module: nn.ReLU6, inputs: list[str], name: str) -> str:
    bounds = [graph.constant(np.array(b, dtype=np.float32)) for b in (0.0, 6.0)]
    return graph.node("Clip", [*inputs, *bounds], name)


def _write_silu(graph: GraphWriter, module: nn.SiLU, inputs: list[str], name: str) -> str:
    return graph.node("Mul", [inputs[0], graph.node("Sigmoid", inputs, f"{name}_gate")], name)


def _write_hard_sigmoid(graph: GraphWriter, module: nn.Hardsigmoid, inputs: list[str], name: str) -> str:
    return graph.node("HardSigmoid", inputs, name, alpha=1 / 6, beta=0.5)


def _write_gelu(graph: GraphWriter, gelu: nn.GELU, inputs: list[str], name: str) -> str:
    return graph.node("Gelu", inputs, name, approximate=gelu.approximate)


def _write_batch_norm(graph: GraphWriter, norm: BatchNorm, inputs: list[str], name: str) -> str:
    tensors = (norm.weight, norm.bias, norm.running_mean, norm.running_var)
    names = [_parameter(graph, t) for t in tensors if t is not None]
    if len(names) < len(tensors):
        raise NoOnnxFormError(norm, name)
    return graph.node("BatchNormalization", [*inputs, *names], name, epsilon=norm.eps)


def _write_global_average(graph: GraphWriter, pool: nn.AdaptiveAvgPool2d, inputs: list[str], name: str) -> str:
    if pool.output_size not in (1, (1, 1)):
        raise NoOnnxFormError(pool, name)
    return graph.node("GlobalAveragePool", inputs, name)


def _write_max_pool(graph: GraphWriter, pool: nn.MaxPool2d, inputs: list[str], name: str) -> str:
    if pool.ceil_mode or pool.return_indices:
        raise NoOnnxFormError(pool, name)
    return graph.node("MaxPool", inputs, name, **_window(pool), dilations=_pair(pool.dilation))


def _write_average_pool(graph: GraphWriter, pool: nn.AvgPool2d, inputs: list[str], name: str) -> str:
    if pool.ceil_mode:
        raise NoOnnxFormError(pool, name)
    window = _window(pool)
    if pool.divisor_override is None:
        counts = int(pool.count_include_pad)
        return graph.node("AveragePool", inputs, name, **window, count_include_pad=counts)
    mean = graph.node("AveragePool", inputs, f"{name}_mean", **window, count_include_pad=1)
    factor = np.float32(np.prod(window["kernel_shape"]) / pool.divisor_override)
    return graph.node("Mul", [mean, graph.constant(np.array(factor))], name)


MODULES: dict[type[nn.Module], Callable[[GraphWriter, Any, list[str], str], str]] = {
    nn.ReLU6: _write_relu6,
    nn.SiLU: _write_silu,
    nn.Hardsigmoid: _write_hard_sigmoid,
    nn.GELU: _write_gelu,
    BatchNorm: _write_batch_norm,
    nn.AdaptiveAvgPool2d: _write_global_average,
    nn.MaxPool2d: _write_max_pool,
    nn.AvgPool2d: _write_average_pool,
}
"""Modules of these types, and of types derived from them."""


def _window(pool: nn.MaxPool2d | nn.AvgPool2d) -> dict[str, Any]:
    return {
        "kernel_shape": _pair(pool.kernel_size),
        "strides": _pair(pool.stride),
        "pads": _pair(pool.padding) * 2,
    }


def _pair(value: Any) -> list[int]:
    return [value, value] if isinstance(value, int) else list(value)


def _bias(graph: GraphWriter, layer: nn.Conv1d | nn.Conv2d | nn.Linear) -> list[str]:
    return [] if layer.bias is None else [_parameter(graph, layer.bias)]


def _parameter(graph: GraphWriter, tensor: Tensor) -> str:
    return graph.constant(tensor.detach().numpy())
