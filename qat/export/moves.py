"""ONNX forms of operations that pick or reorder values: they work on codes and on floats alike."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import fx

from qat.export.graph import GraphWriter

Writer = Callable[[GraphWriter, fx.Node, str, tuple[int, ...], str], str]


def write_slice(graph: GraphWriter, node: fx.Node, tensor: str, shape: tuple[int, ...], name: str) -> str:
    """x[:, :, ::2, ::2]. shape: of the input.

    Raises:
        ValueError: the index picks single elements.
    """
    index = node.args[1]
    assert isinstance(index, tuple)
    if not all(isinstance(i, slice) or i is Ellipsis for i in index):
        raise ValueError(
            f"{node.format_node()} picks single elements: only slices such as x[:, :, ::2] have an ONNX form."
        )
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


MOVES: dict[Any, Writer] = {
    operator.getitem: write_slice,
    **dict.fromkeys(("permute", "transpose", torch.permute), write_transpose),
}
"""One line per operation."""
