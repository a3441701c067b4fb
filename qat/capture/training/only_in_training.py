"""What forward computes in training only: auxiliary heads, and results that differ from those of evaluation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch.nn.functional as F
from torch import fx, nn
from torch.fx.node import map_arg

from qat.capture.graphs.compiled import CompiledGraph
from qat.capture.graphs.in_place import make_out_of_place, overwritten_and_read_again, works_in_place
from qat.capture.graphs.rewriting import owner_of
from qat.capture.state.stored import Stored, remember
from qat.capture.training.statistics import twins_of
from qat.nn import SideEffect

NAME = "only_in_training"


class OnlyInTraining(SideEffect):
    """Computes in training, from tensors of the graph, what the traced forward returned in training.

    Args:
        owner: the module whose submodules and parameters the graph names.
        graph: from tensors of the graph of evaluation to what forward returns in training.
    """

    def __init__(self, owner: nn.Module, graph: CompiledGraph) -> None:
        super().__init__()
        self.owner, self.compiled = (owner,), graph  # a tuple: the owner is not a submodule
        self.results: list[Any] = []

    def forward(self, *inputs: Any) -> None:
        if self.training:
            self.results[:] = [self.compiled.forward(self.owner[0], *inputs)]

    def result(self, of_evaluation: Any) -> Any:
        """What forward returns: in training what this module has just computed, otherwise what the graph returns."""
        return self.results.pop() if self.results else of_evaluation


def add_only_in_training(
    model: nn.Module,
    graph: fx.Graph,
    training: fx.Graph,
    stored: Mapping[str, Stored],
    of_training: Mapping[str, Stored],
) -> list[str] | None:
    """Let a graph of evaluation compute, store and return in training what forward does there, in place.

    That fails where training changes what layers of the graph read, with noise or by leaving out blocks.

    Args:
        training: the graph of the same forward in training.
        stored: what forward stores on its modules in evaluation, which the graph stores already.
        of_training: what it stores in training.

    Returns:
        The names of the layers that training alone runs; None if the graph cannot compute it, and was not changed.
    """
    twins = twins_of(graph, training)
    rest = _rest(training, twins)
    in_evaluation = set(twins.values())
    in_both = _parameters(model, rest) & _parameters(model, [n for n in graph.nodes if n not in in_evaluation])
    stores = {path: value for path, value in of_training.items() if path not in stored}
    others = [
        path for path in stored if path not in of_training or _stores_another(stored[path], of_training[path], twins)
    ]
    if in_both or others or any("no_grad" in node.meta for node in training.nodes):
        return None
    part, inputs = _part(model, training, rest, twins, stores)
    model.add_module(NAME, OnlyInTraining(model, CompiledGraph(part)).train(model.training))
    with graph.inserting_before(next(iter(reversed(graph.nodes)))):
        graph.call_module(NAME, tuple(inputs))
    for node in list(graph.nodes):  # what training reads at the end must not be overwritten before
        if (
            node.op != "output"
            and node.all_input_nodes
            and works_in_place(model, node)
            and node.all_input_nodes[0] in inputs
        ):
            make_out_of_place(model, node)
    if overwritten_and_read_again(model, graph) is not None:
        drop_only_in_training(model, graph)
        return None
    return list(dict.fromkeys(str(n.target) for n in rest if n.op == "call_module" and _parameters(model, [n])))


def drop_only_in_training(model: nn.Module, graph: fx.Graph) -> None:
    """Undo `add_only_in_training`."""
    for node in [n for n in graph.nodes if n.op == "call_module" and n.target == NAME]:
        graph.erase_node(node)
    delattr(model, NAME)


def has_only_in_training(graph: fx.Graph) -> bool:
    """Whether the graph computes something in training only."""
    return any(node.op == "call_module" and node.target == NAME for node in graph.nodes)


def result_of(model: nn.Module, results: Any) -> Any:
    """What forward returns if its graph returns `results`."""
    module = getattr(model, NAME, None)
    return module.result(results) if isinstance(module, OnlyInTraining) else results


def _rest(training: fx.Graph, twins: Mapping[fx.Node, fx.Node]) -> list[fx.Node]:
    """The nodes that only training has, without the counters of BatchNorms that become modules."""
    norms = {str(owner_of(n.args[1])) for n in twins if n.target is F.batch_norm}
    counters = {n for n in training.nodes if n.op == "get_attr" and str(n.target).rpartition(".")[0] in norms}
    counters = {n for n in counters if str(n.target).endswith("num_batches_tracked")}
    return [
        n
        for n in training.nodes
        if n not in twins and n.op not in ("placeholder", "output") and not counters & {n, *n.all_input_nodes}
    ]


def _part(
    model: nn.Module,
    training: fx.Graph,
    rest: list[fx.Node],
    twins: Mapping[fx.Node, fx.Node],
    stores: Mapping[str, Stored],
) -> tuple[fx.Graph, list[fx.Node]]:
    """The graph of what only training computes, and the nodes of the other graph that are its inputs."""
    part, copies, inputs = fx.Graph(), dict[fx.Node, fx.Node](), list[fx.Node]()
    output = next(iter(reversed(training.nodes)))
    read = [n for user in (*rest, output) for n in user.all_input_nodes] + [n for s in stores.values() for n in s.nodes]
    for node in dict.fromkeys(n for n in read if n in twins):
        if node.op == "get_attr":
            copies[node] = part.get_attr(str(node.target))
        else:
            copies[node] = part.placeholder(f"input_{len(inputs)}")
            inputs.append(twins[node])
    for node in rest:
        copies[node] = part.node_copy(node, copies.__getitem__)
    part.output(map_arg(output.args[0], copies.__getitem__))
    remember(model, part, {path: s.with_nodes(copies) for path, s in stores.items()})
    return part, inputs


def _stores_another(stored: Stored, of_training: Stored, twins: Mapping[fx.Node, fx.Node]) -> bool:
    """Whether forward stores something else in training."""
    return [twins.get(n) for n in of_training.nodes] != stored.nodes


def _parameters(model: nn.Module, nodes: list[fx.Node]) -> set[str]:
    """The names of the parameters that these nodes read."""
    found = {str(n.target) for n in nodes if n.op == "get_attr"} & {name for name, _ in model.named_parameters()}
    for node in nodes:
        if node.op == "call_module":
            module = model.get_submodule(str(node.target))
            found |= {f"{node.target}.{name}" for name, _ in module.named_parameters()}
    return found
