"""The operations of a graph of torch.fx as texts, to compare graphs."""

from __future__ import annotations

from collections.abc import Iterable

import torch.nn.functional as F
from torch import fx
from torch.fx.node import map_arg

from qat.capture.canonical.canonical_form import ADDED_DROPOUT, DROPOUTS


def counted(nodes: Iterable[fx.Node]) -> list[fx.Node]:
    """The nodes that `operations` describes."""
    return [
        node
        for node in nodes
        if node.op != "get_attr"
        and not _is_dropout(node)
        and not any("num_batches_tracked" in str(n.target) for n in node.all_input_nodes)
    ]


def operations(nodes: Iterable[fx.Node]) -> list[str]:
    """The operations of nodes in order, and which of them are returned.

    Dropout, and the flags and counters of BatchNorm, are left out, because modules decide on them.
    """

    def numbers(node: fx.Node) -> list[float]:
        values = () if node.target is F.batch_norm else (*node.args, *node.kwargs.values())
        return [value for value in values if isinstance(value, int | float)]

    described = counted(nodes)
    positions = {node: i for i, node in enumerate(described)}

    def returned(node: fx.Node) -> int | None:
        while _is_dropout(node):
            node = node.all_input_nodes[0]
        return positions.get(node)

    return [
        f"{node.op} {node.target} {len(inputs_of(node))} {numbers(node)}"
        + (f" {[returned(n) for n in node.all_input_nodes]}" if node.op == "output" else "")
        for node in described
    ]


def inputs_of(node: fx.Node) -> list[fx.Node]:
    """The nodes that a node reads, in the order of its arguments; those that it reads twice are there twice."""
    found: list[fx.Node] = []
    map_arg((node.args, node.kwargs), found.append)
    return found


def _is_dropout(node: fx.Node) -> bool:
    return node.target in DROPOUTS or str(node.target).startswith(ADDED_DROPOUT)
