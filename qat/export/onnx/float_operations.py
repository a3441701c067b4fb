"""ONNX forms of the commonest operations that stay in float; the others are written by `island.py`."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import fx, nn
from torch.nn.modules.batchnorm import _BatchNorm

from qat.export.onnx.graph_writer import GraphWriter, NoOnnxFormError
from qat.integer.modules import explicit_padding
from qat.transform.plan import is_identity_in_evaluation, mean_axes

_ELEMENTWISE: dict[Any, str] = {
    **dict.fromkeys((nn.ReLU, F.relu, torch.relu, "relu"), "Relu"),
    **dict.fromkeys((nn.Sigmoid, torch.sigmoid, F.sigmoid, "sigmoid"), "Sigmoid"),
    **dict.fromkeys((nn.Tanh, torch.tanh, "tanh"), "Tanh"),
    **dict.fromkeys((nn.Hardswish, F.hardswish), "HardSwish"),
    **dict.fromkeys((operator.add, operator.iadd, torch.add, "add", "add_"), "Add"),
    **dict.fromkeys((operator.mul, operator.imul, torch.mul, "mul"), "Mul"),
}
_AS_MODULES: dict[Any, Callable[..., nn.Module]] = {
    F.relu6: nn.ReLU6,
    F.silu: nn.SiLU,
    F.gelu: nn.GELU,
    F.max_pool2d: nn.MaxPool2d,
    F.avg_pool2d: nn.AvgPool2d,
    F.adaptive_avg_pool2d: nn.AdaptiveAvgPool2d,
}
"""Functions whose further arguments are those of a module."""


def write_float(
    graph: GraphWriter,
    operation: Any,
    inputs: list[str],
    name: str,
    node: fx.Node | None = None,
    weight: str | None = None,
) -> str:
    """Write a module or function in float; returns the name of its result.

    Args:
        operation: a module, a function or a method's name. node: its fx node, for functions. weight: the name of a weight
            to use instead of the module's own.

    Raises:
        NoOnnxFormError: none is known here.
    """
    key = type(operation) if isinstance(operation, nn.Module) else operation
    if key in _ELEMENTWISE and (node is None or (len(inputs) == len(node.args) and not node.kwargs)):
        return graph.node(_ELEMENTWISE[key], inputs, name)
    if node is not None and key in _AS_MODULES:
        operation = _AS_MODULES[key](*node.args[1:], **node.kwargs)
    if isinstance(operation, nn.Module) and is_identity_in_evaluation(operation):
        return inputs[0]
    match operation:
        case nn.ReLU6():
            bounds = [graph.constant(np.array(b, dtype=np.float32)) for b in (0.0, 6.0)]
            return graph.node("Clip", [*inputs, *bounds], name)
        case nn.SiLU():
            return graph.node("Mul", [inputs[0], graph.node("Sigmoid", inputs, f"{name}_gate")], name)
        case nn.Hardsigmoid():
            return graph.node("HardSigmoid", inputs, name, alpha=1 / 6, beta=0.5)
        case nn.GELU():
            return graph.node("Gelu", inputs, name, approximate=operation.approximate)
        case _BatchNorm():
            tensors = (operation.weight, operation.bias, operation.running_mean, operation.running_var)
            names = [graph.constant(t.detach().numpy()) for t in tensors if t is not None]
            if len(names) == 4:
                return graph.node("BatchNormalization", [*inputs, *names], name, epsilon=operation.eps)
        case nn.Conv1d() | nn.Conv2d() if operation.padding_mode == "zeros":
            before, after = explicit_padding(operation)
            return graph.node(
                "Conv",
                [*inputs, weight or graph.constant(operation.weight.detach().numpy()), *_bias(graph, operation.bias)],
                name,
                strides=list(operation.stride),
                pads=[*before, *after],
                dilations=list(operation.dilation),
                group=operation.groups,
                kernel_shape=list(operation.kernel_size),
            )
        case nn.Linear():
            matrix = weight or graph.constant(operation.weight.detach().numpy())
            turned = graph.node("Transpose", [matrix], f"{name}_turned", perm=[1, 0])
            if operation.bias is None:
                return graph.node("MatMul", [*inputs, turned], name)
            product = graph.node("MatMul", [*inputs, turned], f"{name}_product")
            return graph.node("Add", [product, *_bias(graph, operation.bias)], name)
        case nn.AdaptiveAvgPool2d() if operation.output_size in (1, (1, 1)):
            return graph.node("GlobalAveragePool", inputs, name)
        case nn.MaxPool2d() if not operation.ceil_mode and not operation.return_indices:
            window = _window(operation.kernel_size, operation.stride, operation.padding)
            return graph.node("MaxPool", inputs, name, **window, dilations=_pair(operation.dilation))
        case nn.AvgPool2d() if not operation.ceil_mode:
            window = _window(operation.kernel_size, operation.stride, operation.padding)
            if operation.divisor_override is None:
                counts = int(operation.count_include_pad)
                return graph.node("AveragePool", inputs, name, **window, count_include_pad=counts)
            mean = graph.node("AveragePool", inputs, f"{name}_mean", **window, count_include_pad=1)
            factor = np.float32(np.prod(window["kernel_shape"]) / operation.divisor_override)
            return graph.node("Mul", [mean, graph.constant(np.array(factor))], name)
        case torch.cat if node is not None:
            dim = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", 0)
            return graph.node("Concat", inputs, name, axis=dim)
        case "mean" | torch.mean if node is not None and mean_axes(node) == (2, 3):
            keepdim = node.args[2] if len(node.args) > 2 else node.kwargs.get("keepdim", False)
            axes = graph.constant(np.array([2, 3], dtype=np.int64))
            return graph.node("ReduceMean", [*inputs, axes], name, keepdims=int(bool(keepdim)))
    raise NoOnnxFormError(operation, name)


def _window(kernel: Any, stride: Any, padding: Any) -> dict[str, Any]:
    return {"kernel_shape": _pair(kernel), "strides": _pair(stride), "pads": _pair(padding) * 2}


def _pair(value: Any) -> list[int]:
    return [value, value] if isinstance(value, int) else list(value)


def _bias(graph: GraphWriter, bias: torch.Tensor | None) -> list[str]:
    return [] if bias is None else [graph.constant(bias.detach().numpy())]
