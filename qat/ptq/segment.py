"""Parts of a graph with one input and one output tensor, which are reconstructed separately."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from torch import fx, nn

from qat.nn import as_quantized, is_quantized
from qat.operations import Operations, Role, describe_graph


@dataclass(frozen=True)
class Segment:
    """Consecutive operations. start: the input tensor. nodes: in order; the last one produces the output."""

    start: fx.Node
    nodes: tuple[fx.Node, ...]

    def extract(self, network: nn.Module) -> fx.GraphModule:
        """The segment as a separate module, from tensor to tensor. It shares layers and sites with `network`."""
        graph = fx.Graph()
        copies = {self.start: graph.placeholder("x")}

        def copied(node: fx.Node) -> fx.Node:
            if node not in copies:
                assert node.op == "get_attr" or node in self.nodes
                copies[node] = graph.node_copy(node, copied)
            return copies[node]

        for node in self.nodes:
            copied(node)
        graph.output(copies[self.nodes[-1]])
        return fx.GraphModule(network, graph).eval()


def layers_with_quantized_weights(network: nn.Module, nodes: Iterable[fx.Node]) -> list[nn.Module]:
    """The layers among `nodes` that have a quantized weight, each once."""
    modules = {network.get_submodule(str(n.target)): None for n in nodes if n.op == "call_module"}
    return [m for m in modules if is_quantized(m) and as_quantized(m).weight_quantizer is not None]


def layer_segments(network: nn.Module, graph: fx.Graph) -> list[Segment]:
    """Each layer with the BatchNorm and the activation function behind it. A layer that runs twice: its first run."""
    found, seen = [], set()
    operations = describe_graph(network, graph)
    for node in graph.nodes:
        if node.target not in seen and layers_with_quantized_weights(network, [node]):
            seen.add(node.target)
            nodes = [node]
            for role in (Role.NORM, Role.RECTIFY):
                users = list(nodes[-1].users)
                if len(users) == 1 and operations[users[0]].role is role:
                    nodes.append(users[0])
            found.append(Segment(node.all_input_nodes[0], tuple(nodes)))
    return found


def block_segments(network: nn.Module, graph: fx.Graph) -> list[Segment]:
    """The graph, cut at tensors through which all data flow, in front of their sites: residual blocks and single layers.

    A block ends behind its last activation function, and holds the sites of its own input. A block with a layer of an earlier
    block (a module that runs twice) is left out.
    """
    found: list[Segment] = []
    seen: set[nn.Module] = set()
    start, nodes = None, []
    operations = describe_graph(network, graph)
    for node, is_cut in _cuts(graph):
        if node.op == "placeholder":
            start = node
            continue
        nodes.append(node)
        layers = set(layers_with_quantized_weights(network, nodes))
        if start is None or not is_cut or not layers or not _ends_here(operations, node):
            continue
        if not layers & seen:
            found.append(Segment(start, tuple(nodes)))
        seen |= layers
        start, nodes = node, []
    return found


def _ends_here(operations: Operations, node: fx.Node) -> bool:
    """Whether a block can end with this tensor: its users are sites, layers or the output, and it is not a site itself."""
    roles = {operations[user].role for user in node.users}
    return roles <= {Role.SITE, Role.LAYER, Role.OUTPUT} and operations[node].role is not Role.SITE


def _cuts(graph: fx.Graph) -> Iterator[tuple[fx.Node, bool]]:
    """(operation, whether its tensor is the only one that the rest of the graph reads)."""
    last_user = {source: node for node in graph.nodes for source in node.all_input_nodes}
    alive: set[fx.Node] = set()
    for node in graph.nodes:
        if node.op in ("output", "get_attr"):
            continue
        alive = {other for other in alive if last_user[other] is not node}
        if node in last_user:
            alive.add(node)
        yield node, alive == {node}
