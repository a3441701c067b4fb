"""ONNX forms of operations that pick or reorder values: they work on codes and on floats alike."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import fx

from qat.export.onnx.graph_writer import GraphWriter, NoOnnxFormError
from qat.transform.plan import pads_with_zeros

Writer = Callable[[GraphWriter, fx.Node, str, tuple[int, ...], str], str]


def write_slice(graph: GraphWriter, node: fx.Node, tensor: str, shape: tuple[int, ...], name: str) -> str:
    """x[:, :, ::2, ::2]. shape: of the input.

    Raises:
        NoOnnxFormError: the index is more than slices of fixed bounds.
    """
    index = node.args[1] if isinstance(node.args[1], tuple) else (node.args[1],)
    fixed = (v is None or isinstance(v, int) for i in index if isinstance(i, slice) for v in (i.start, i.stop, i.step))
    if not all(isinstance(i, slice) or i is Ellipsis for i in index) or not all(fixed):
        raise NoOnnxFormError(node.target, name)
    gap = len(shape) - (len(index) - (Ellipsis in index))
    used: list[tuple[int, slice]] = []
    axis = 0
    for part in index:
        if isinstance(part, slice):
            if part != slice(None):
                used.append((axis, part))
            axis += 1
        else:
            axis += gap
    far = np.iinfo(np.int64).max
    columns = (
        [part.start or 0 for _, part in used],
        [far if part.stop is None else part.stop for _, part in used],
        [axis for axis, _ in used],
        [part.step or 1 for _, part in used],
    )
    constants = [graph.constant(np.array(column, dtype=np.int64)) for column in columns]
    return graph.node("Slice", [tensor, *constants], name)


def write_transpose(graph: GraphWriter, node: fx.Node, tensor: str, shape: tuple[int, ...], name: str) -> str:
    """x.permute(...), torch.permute(x, ...) and x.transpose(a, b)."""
    rank = len(shape)
    rest: Any = node.args[1:]
    if node.target == "transpose":
        order = list(range(rank))
        a, b = (i % rank for i in rest)
        order[a], order[b] = order[b], order[a]
    else:
        listed = rest[0] if isinstance(rest[0], tuple | list) else rest
        order = [i % rank for i in listed]
    return graph.node("Transpose", [tensor], name, perm=order)


def write_pad(graph: GraphWriter, node: fx.Node, tensor: str, shape: tuple[int, ...], name: str) -> str:
    """F.pad(x, pad) with zeros, of a float tensor; codes are padded by an integer module.

    Raises:
        NoOnnxFormError: it pads with something else.
    """
    if not pads_with_zeros(*node.args, **node.kwargs):
        raise NoOnnxFormError(node.target, name)
    pad: Any = node.args[1] if len(node.args) > 1 else node.kwargs["pad"]
    return graph.node("Pad", [tensor, graph.constant(pads_of_axes(pad, len(shape)))], name)


def pads_of_axes(pad: tuple[int, ...], rank: int) -> NDArray[np.int64]:
    """torch's padding, last axis first, as ONNX has it: before each axis, then behind each.

    >>> pads_of_axes((1, 2, 0, 3), 4).tolist()
    [0, 0, 0, 1, 0, 0, 3, 2]
    """
    pairs = [(pad[i], pad[i + 1]) for i in range(0, len(pad), 2)]
    pairs = [(0, 0)] * (rank - len(pairs)) + pairs[::-1]
    return np.array([before for before, _ in pairs] + [behind for _, behind in pairs], dtype=np.int64)


MOVES: dict[Any, Writer] = {
    operator.getitem: write_slice,
    F.pad: write_pad,
    **dict.fromkeys(("permute", "transpose", torch.permute), write_transpose),
}
"""One line per operation."""
