"""Dropout that forward calls in training alone: `if self.training: x = F.dropout(x, p)`."""

from __future__ import annotations

import inspect
from typing import Any

from torch import fx, nn
from torch.fx.node import map_arg

from qat.capture.canonical.canonical_form import DROPOUTS
from qat.capture.traced.operations import counted, inputs_of, operations
from qat.nn import is_identity_in_evaluation


def add_dropout(model: nn.Module, graph: fx.Graph, training: fx.Graph) -> None:
    """Add the dropout that only training calls to the graph of evaluation, in place, if the graphs are the same otherwise."""
    of_both = [[n for n in g.nodes if not _is_dropout(model, n)] for g in (graph, training)]
    if operations(of_both[0]) != operations(of_both[1]):
        return
    twins = dict(zip(counted(of_both[1]), counted(of_both[0]), strict=True))
    unpaired = [n for n in graph.nodes if _is_dropout(model, n)]
    missing: list[fx.Node] = []
    for node in training.nodes:
        if node in twins or not _is_dropout(model, node):
            continue
        source = node.all_input_nodes[0]
        paired = (n for n in unpaired if n.target == node.target and n.all_input_nodes[0] is twins.get(source))
        if (twin := next(paired, None)) is not None:
            twins[node] = twin
            unpaired.remove(twin)
        elif source in twins or source in missing:
            missing.append(node)
        else:
            return
    if missing and not unpaired:
        _add(graph, training, twins, missing)


def _add(graph: fx.Graph, training: fx.Graph, twins: dict[fx.Node, fx.Node], missing: list[fx.Node]) -> None:
    """Copy the nodes of `missing` to where they are in training, and let the twins of their readers read them."""
    before = next(iter(graph.nodes))
    for node in training.nodes:
        if node in missing:
            with graph.inserting_after(before):
                twins[node] = graph.node_copy(node, twins.__getitem__)
            if node.op == "call_function":
                bound = inspect.signature(node.target).bind(*twins[node].args, **twins[node].kwargs)
                twins[node].args, twins[node].kwargs = (), {**bound.arguments, "training": False}
        elif node in twins and not set(missing).isdisjoint(node.all_input_nodes):
            _read_as(twins[node], node, twins, missing)
        before = twins.get(node, before)


def _read_as(node: fx.Node, in_training: fx.Node, twins: dict[fx.Node, fx.Node], missing: list[fx.Node]) -> None:
    """Let a node read what its twin in training reads, where that is one of the new calls."""
    remaining = iter(inputs_of(in_training))

    def of_training(old: fx.Node) -> Any:
        new = next(remaining)
        return twins[new] if new in missing else old

    node.args, node.kwargs = map_arg((node.args, node.kwargs), of_training)


def _is_dropout(model: nn.Module, node: fx.Node) -> bool:
    if node.op == "call_module":
        return is_identity_in_evaluation(model.get_submodule(str(node.target)))
    return node.target in DROPOUTS
