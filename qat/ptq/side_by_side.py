"""Run the quantized and the float network side by side on all calibration data, operation by operation."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, fx, nn

from qat.capture import CallFormat, graph_inputs
from qat.ptq.segment import layer_segments
from qat.ptq.state import PTQState
from qat.ptq.unfold import UNFOLDED
from qat.transform.batches import call_of


class SideBySideRun:
    """Yields every operation of the graph just before it is computed, for all batches at once.

    If a pass changes a layer when it is yielded, the rest of the run uses the changed layer. So each layer sees the errors of
    the layers before it (asymmetric reconstruction), at the cost of two forward passes in total. Tensors of all calibration
    data are kept from their producer to their last user.

        for node in (networks := SideBySideRun(state)):
            networks.quantized[node.args[0]]  # its input, a list with one value per batch
    """

    def __init__(self, state: PTQState) -> None:
        assert state.reference is not None, "Calibrate comes first"
        self.graph = state.graph()
        self.quantized = TensorStore(state.network, self.graph, state.batches, state.call_format)
        self.float = TensorStore(state.reference, self.graph, state.batches, state.call_format)

    def __iter__(self) -> Iterator[fx.Node]:
        for node in self.graph.nodes:
            if node.op not in ("placeholder", "output"):
                yield node
                self.quantized.advance(node)
                self.float.advance(node)


def layers_in_order(state: PTQState, name: str) -> Iterator[tuple[nn.Module, list[Any]]]:
    """Quantized linear layers and convolutions of one or two axes, from first to last, with their inputs.

    Inputs are those in the quantized network, a list with one value per batch. If a pass changes a layer when it is yielded,
    later layers see the change.

    Args:
        state: the networks and batches.
        name: the name of the pass, for the progress callback.
    """
    networks = SideBySideRun(state)
    nodes = [segment.nodes[0] for segment in layer_segments(state.network, networks.graph)]
    firsts = [node for node in nodes if isinstance(state.network.get_submodule(str(node.target)), UNFOLDED)]
    done = 0
    for node in networks:
        if node in firsts:
            yield state.network.get_submodule(str(node.target)), networks.quantized[node.all_input_nodes[0]]
            done += 1
            state.on_progress(name, done, len(firsts))


class TensorStore:
    """The tensors of one network that are still needed: `store[node]` is a list with one value per batch."""

    def __init__(
        self, network: nn.Module, graph: fx.Graph, batches: list[Any] | Any, call_format: CallFormat | None
    ) -> None:
        self.interpreter = fx.Interpreter(network, graph=graph)
        self.n_batches = len(batches)
        self.last_user = {source: node for node in graph.nodes for source in node.all_input_nodes}
        inputs = graph.find_nodes(op="placeholder")
        given = [_inputs(network, graph, batch, call_format) for batch in batches]
        self.values: dict[fx.Node, list[Any]] = {node: [g[i] for g in given] for i, node in enumerate(inputs)}

    def __getitem__(self, node: fx.Node) -> list[Any]:
        return self.values[node]

    def tensor(self, node: fx.Node) -> Tensor:
        """The value for all data, batches joined: (images, ...).

        Raises:
            ValueError: the batches differ in size.
        """
        shapes = sorted({tuple(value.shape[1:]) for value in self.values[node]})
        if len(shapes) > 1:
            raise ValueError(
                f"this pass learns from all batches at once, and they differ in size ({shapes[0]} and {shapes[-1]} at "
                f"{node.name!r}): give calibration batches of one size."
            )
        return torch.cat(self.values[node])

    @torch.no_grad()
    def advance(self, node: fx.Node) -> list[Any]:
        """Compute `node`, and drop the tensors that no later node reads. Returns its values, one per batch."""
        sources = node.all_input_nodes
        results = []
        for i in range(self.n_batches):
            self.interpreter.env = {source: self.values[source][i] for source in sources}
            results.append(self.interpreter.run_node(node))
        self.values[node] = results
        for source in sources:
            if self.last_user[source] is node:
                del self.values[source]
        if node not in self.last_user:
            del self.values[node]
        return results


def _inputs(network: nn.Module, graph: fx.Graph, batch: Any, call_format: CallFormat | None) -> list[Any]:
    """The inputs of a graph, in order, for a batch.

    Raises:
        ValueError: the graph was captured for another kind of call.
    """
    found = graph_inputs(network, graph, call_format, *call_of(network, batch))
    if found is None:
        assert call_format is not None
        raise ValueError(
            f"{type(network).__name__} was captured for calls with {', '.join(call_format.names)}, and this batch has others: "
            "give all calibration batches the same arguments."
        )
    return found
