"""Moving statistics that forward updates in training: the updates are copied from the graph of training."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn
from torch.fx.node import map_arg

from qat.capture.canonical.canonical_form import DROPOUTS
from qat.capture.graphs.compiled import CompiledGraph
from qat.capture.graphs.in_place import overwriting_buffers
from qat.capture.traced.operations import operations
from qat.nn import SideEffect

_COUNTER = "num_batches_tracked"
"""The counter that BatchNorm modules update themselves."""


class UpdateInTraining(SideEffect):
    """Changes buffers of another module in training, as the traced forward did.

    Args:
        owner: the module whose buffers the graph names.
        update: the graph from tensors of the main graph to the changes.
    """

    def __init__(self, owner: nn.Module, update: CompiledGraph) -> None:
        super().__init__()
        self.owner, self.update = (owner,), update  # a tuple: the owner is not a submodule

    def forward(self, *inputs: Any) -> None:
        if self.training:
            with torch.no_grad():
                self.update.forward(self.owner[0], *inputs)


def updated_in_training(model: nn.Module, graph: fx.Graph, training: fx.Graph) -> set[str]:
    """Names of the buffers that forward overwrites only in training."""
    lost = set(overwriting_buffers(model, training).values()) - set(overwriting_buffers(model, graph).values())
    return {name for name in lost if not name.endswith(_COUNTER)}


def add_updates(model: nn.Module, graph: fx.Graph, training: fx.Graph) -> bool:
    """Let the graph of evaluation update the statistics, too, in place.

    Returns:
        Whether it could be done: not if forward computes something else in training, or the update cannot be separated.
    """
    names = updated_in_training(model, graph, training)
    changing = [node for node, name in overwriting_buffers(model, training).items() if name in names]
    twins = twins_of(graph, training)
    update = _needed(changing, twins)
    rest = [node for node in training.nodes if node not in update]
    if operations(rest) != operations(graph.nodes) or any("no_grad" in node.meta for node in rest):
        return False
    order = {node: i for i, node in enumerate(training.nodes)}
    inputs = [n for node in update for n in node.all_input_nodes if n not in update]
    inputs = list(dict.fromkeys(inputs))
    before = [n for n in rest if n in twins and (n in inputs or order[n] < order[changing[0]])]
    before = [n for n in before if n.op not in ("get_attr", "output")]
    if not before or any(n not in twins for n in inputs):
        return False
    part, copies = fx.Graph(), dict[fx.Node, fx.Node]()
    for node in inputs:
        copies[node] = part.placeholder(f"input_{len(copies)}")
    for node in training.nodes:
        if node in update:
            copies[node] = part.node_copy(node, copies.__getitem__)
    part.output(None)
    model.add_module("update_in_training", UpdateInTraining(model, CompiledGraph(part)).train(model.training))
    positions = {node: i for i, node in enumerate(graph.nodes)}
    with graph.inserting_after(max((twins[n] for n in before), key=positions.__getitem__)):
        graph.call_module("update_in_training", tuple(twins[n] for n in inputs))
    return True


def twins_of(graph: fx.Graph, training: fx.Graph) -> dict[fx.Node, fx.Node]:
    """Node of the graph of training -> the one of evaluation that computes the same."""
    unused: dict[Any, list[fx.Node]] = {}
    for node in graph.nodes:
        unused.setdefault(_key(node, {n: n for n in graph.nodes}), []).append(node)
    twins: dict[fx.Node, fx.Node] = {}
    for node in training.nodes:
        if all(n in twins for n in node.all_input_nodes) and (found := unused.get(_key(node, twins))):
            twins[node] = found.pop(0)
    return twins


def _key(node: fx.Node, names: dict[fx.Node, fx.Node]) -> str:
    """A text for what the node computes, with the names of `names`, without the flags of dropout and BatchNorm."""
    if node.target is F.batch_norm or node.target in DROPOUTS:
        return f"{node.target} {[names[n].name for n in node.all_input_nodes]}"
    arguments = map_arg((node.args, node.kwargs), lambda n: f"%{names[n].name}")
    return f"{node.op} {node.target} {arguments}"


def _needed(changing: list[fx.Node], twins: dict[fx.Node, fx.Node]) -> set[fx.Node]:
    """The nodes that change something, and those that only they need."""
    found: set[fx.Node] = set()
    todo = list(changing)
    while todo:
        node = todo.pop()
        is_needed = node in changing or node.op == "get_attr" or node not in twins
        if node not in found and is_needed and node.op != "placeholder":
            found.add(node)
            todo += node.all_input_nodes
    return found
