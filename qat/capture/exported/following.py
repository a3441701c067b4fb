"""Device and dtype of the tensors that a graph of torch.export makes: they follow those of the model.

torch.export writes down those of the model at capture. Here they are read from a small buffer, which moves with the model.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import fx, nn
from torch.fx.node import map_aggregate

ANCHOR = "anchor_of_graph"


def follow_the_model(model: nn.Module, graph: fx.Graph) -> None:
    """Replace every device and dtype in the graph that equals the model's by one read from the anchor, in place."""
    like = next((p for p in (*model.parameters(), *model.buffers()) if p.is_floating_point()), None)
    if like is None:
        return
    kinds: dict[torch.dtype | torch.device, str] = {like.dtype: "dtype", like.device: "device"}
    nodes = [n for n in graph.nodes if any(_is_in(kinds, leaf) for leaf in _leaves((n.args, n.kwargs)))]
    if not nodes:
        return
    if not hasattr(model, ANCHOR):
        model.register_buffer(ANCHOR, torch.zeros((), dtype=like.dtype, device=like.device), persistent=False)
    with graph.inserting_before(next(iter(graph.nodes))):
        anchor = graph.get_attr(ANCHOR)
    for node in nodes:
        with graph.inserting_before(node):
            read = {
                kind: graph.call_function(getattr, (anchor, kind))
                for kind in sorted({kinds[leaf] for leaf in _leaves((node.args, node.kwargs)) if _is_in(kinds, leaf)})
            }
        _replace(node, {leaf: read[kind] for leaf, kind in kinds.items() if kind in read})


def stop_following(model: nn.Module, graph: fx.Graph) -> None:
    """Undo `follow_the_model`: write the model's present device and dtype into the graph, in place."""
    for node in list(graph.nodes):
        if node.op == "call_function" and node.target is getattr and _is_anchor(node.args[0]):
            value = getattr(getattr(model, ANCHOR), str(node.args[1]))
            for user in list(node.users):
                _replace(user, {node: value})
            graph.erase_node(node)
    for node in list(graph.nodes):
        if _is_anchor(node) and not node.users:
            graph.erase_node(node)


def _replace(node: fx.Node, values: dict[Any, Any]) -> None:
    """Replace arguments of a node, nested ones too: devices, dtypes or nodes."""

    def changed(leaf: Any) -> Any:
        return values.get(leaf, leaf) if isinstance(leaf, torch.dtype | torch.device | fx.Node) else leaf

    node.args, node.kwargs = map_aggregate(node.args, changed), map_aggregate(node.kwargs, changed)


def _is_anchor(node: Any) -> bool:
    return isinstance(node, fx.Node) and node.op == "get_attr" and node.target == ANCHOR


def _is_in(kinds: dict[torch.dtype | torch.device, str], leaf: Any) -> bool:
    return isinstance(leaf, torch.dtype | torch.device) and leaf in kinds


def _leaves(values: Any) -> list[Any]:
    found: list[Any] = []
    map_aggregate(values, found.append)
    return found
