"""ONNX forms of operations that pick or reorder values, of codes and floats alike."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import fx, nn

from qat.export.onnx.graph_writer import NoOnnxFormError
from qat.export.onnx.qdq_graph import QdqGraph, tensor_name
from qat.operations import AdaptiveMaxPool, PadZeros, call_of


def write_slice(graph: QdqGraph, node: fx.Node) -> str:
    """x[:, :, ::2, ::2].

    Raises:
        NoOnnxFormError: the index has other elements than `...` and slices with fixed bounds.
    """
    index = node.args[1] if isinstance(node.args[1], tuple) else (node.args[1],)
    fixed = (v is None or isinstance(v, int) for i in index if isinstance(i, slice) for v in (i.start, i.stop, i.step))
    if not all(isinstance(i, slice) or i is Ellipsis for i in index) or not all(fixed):
        raise NoOnnxFormError(node.target, tensor_name(node))
    axes_of_ellipsis = len(graph.input_shape(node)) - (len(index) - (Ellipsis in index))
    slices: list[tuple[int, slice]] = []
    axis = 0
    for part in index:
        if isinstance(part, slice):
            if part != slice(None):
                slices.append((axis, part))
            axis += 1
        else:
            axis += axes_of_ellipsis
    end_of_axis = np.iinfo(np.int64).max
    columns = (
        [part.start or 0 for _, part in slices],
        [end_of_axis if part.stop is None else part.stop for _, part in slices],
        [axis for axis, _ in slices],
        [part.step or 1 for _, part in slices],
    )
    constants = [graph.constant(np.array(column, dtype=np.int64)) for column in columns]
    return graph.node("Slice", [graph.input(node), *constants], tensor_name(node))


def write_transpose(graph: QdqGraph, node: fx.Node) -> str:
    """x.permute(...), torch.permute(x, ...), x.transpose(a, b), however their axes are spelled.

    Raises:
        NoOnnxFormError: the axes are calculated.
    """
    if len(node.all_input_nodes) > 1:
        raise NoOnnxFormError(node.target, tensor_name(node))
    rank, call = len(graph.input_shape(node)), call_of(nn.Module(), node)
    if call.name == "transpose":
        order = list(range(rank))
        a, b = call.arguments["dim0"] % rank, call.arguments["dim1"] % rank
        order[a], order[b] = order[b], order[a]
    else:
        order = [i % rank for i in call.arguments["dims"]]
    return graph.node("Transpose", [graph.input(node)], tensor_name(node), perm=order)


def write_adaptive_max_pool(graph: QdqGraph, node: fx.Node, operation: AdaptiveMaxPool) -> str:
    """One MaxPool where the sizes divide; elsewhere, axis by axis, the maximum of each window."""
    shape, name, axes = graph.input_shape(node), tensor_name(node), len(operation.size)
    sizes = shape[-axes:]
    if not any(size % parts for size, parts in zip(sizes, operation.size, strict=True)):
        windows = [size // parts for size, parts in zip(sizes, operation.size, strict=True)]
        return graph.node("MaxPool", [graph.input(node)], name, kernel_shape=windows, strides=windows)
    tensor = graph.input(node)
    for axis, size, parts in zip(range(len(shape) - axes, len(shape)), sizes, operation.size, strict=True):
        maxima = [_maximum_of_window(graph, tensor, axis, size, parts, i, name) for i in range(parts)]
        last = axis == len(shape) - 1
        tensor = graph.node("Concat", maxima, name if last else f"{name}_axis_{axis}", axis=axis)
    return tensor


def _maximum_of_window(graph: QdqGraph, tensor: str, axis: int, size: int, parts: int, index: int, name: str) -> str:
    start, end = index * size // parts, -(-(index + 1) * size // parts)
    bounds = [graph.constant(np.array([n], dtype=np.int64)) for n in (start, end, axis)]
    window = graph.node("Slice", [tensor, *bounds], f"{name}_window_{axis}_{index}")
    return graph.node("ReduceMax", [window, bounds[2]], f"{name}_maximum_{axis}_{index}", keepdims=1)


def write_pad(graph: QdqGraph, node: fx.Node) -> str:
    """F.pad(x, pad) of a float tensor; `IntegerPad` pads codes.

    Raises:
        NoOnnxFormError: it does not pad with zeros.
    """
    operation = graph.operations[node]
    if not isinstance(operation, PadZeros):
        raise NoOnnxFormError(node.target, tensor_name(node))
    pads = graph.constant(pads_of_axes(operation.pad, len(graph.input_shape(node))))
    return graph.node("Pad", [graph.input(node), pads], tensor_name(node))


def pads_of_axes(pad: tuple[int, ...], rank: int) -> NDArray[np.int64]:
    """Convert torch's padding (last axis first) to ONNX's: before each axis, then behind each axis.

    >>> pads_of_axes((1, 2, 0, 3), 4).tolist()
    [0, 0, 0, 1, 0, 0, 3, 2]
    """
    pairs = [(pad[i], pad[i + 1]) for i in range(0, len(pad), 2)]
    pairs = [(0, 0)] * (rank - len(pairs)) + pairs[::-1]
    return np.array([before for before, _ in pairs] + [behind for _, behind in pairs], dtype=np.int64)


DATA_MOVEMENT: dict[Any, Callable[[QdqGraph, fx.Node], str]] = {
    operator.getitem: write_slice,
    F.pad: write_pad,
    **dict.fromkeys(("permute", "transpose", torch.permute), write_transpose),
}
