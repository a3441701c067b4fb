"""SmoothQuant (Xiao et al. 2022, "SmoothQuant: accurate and efficient PTQ for large language models", arXiv:2211.10438)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor, fx, nn

from qat.arguments import is_number
from qat.nn import is_layer, owns_weight
from qat.operations import Move, Operation, Role, describe_graph, operation_name, read_past_their_forward
from qat.ptq.base import Pass, Stage
from qat.ptq.side_by_side import TensorStore
from qat.ptq.state import PTQState


class Smoothing(NamedTuple):
    """A normalization whose result only linear layers read. output: its node; scaled: its gain and, if any, its bias."""

    output: fx.Node
    scaled: tuple[Tensor, ...]
    layers: tuple[nn.Linear, ...]


class SmoothQuant(Pass):
    """Moves outliers of activations into weights: x / s behind each normalization, W s in the linear layers that read it.

    s_j = max |x_j| ** alpha / max |W_j| ** (1 - alpha) (eq. 4), over the calibration data and all layers that read x. The gain
    and the bias of LayerNorm, or the gain of a normalization that ends in `weight * x` (RMSNorm), are divided by s, so the
    float function stays the same.

    Differs from the paper: only normalizations are smoothed, as in the paper's experiments, and only where every reader is a
    linear layer with a weight of its own.

    Args:
        alpha: the migration strength, in [0, 1]: how much of the difficulty moves into the weights.

    Raises:
        ValueError: alpha is out of range.
    """

    stage = Stage.FLOAT

    def __init__(self, alpha: float = 0.5) -> None:
        if not (is_number(alpha) and 0.0 <= alpha <= 1.0):
            raise ValueError(f"alpha={alpha!r} is not possible: write a number from 0 to 1, for example 0.5.")
        self.alpha = alpha

    @torch.no_grad()
    def apply(self, state: PTQState) -> None:
        graph = state.graph()
        found = find_smoothings(state.network, graph)
        largest = _largest_magnitudes(state, graph, [smoothing.output for smoothing in found])
        for done, smoothing in enumerate(found):
            of_weights = (
                torch.stack([layer.weight.abs().amax(dim=0) for layer in smoothing.layers]).amax(dim=0).double()
            )
            of_inputs = largest[smoothing.output].to(of_weights)
            s = of_inputs**self.alpha / of_weights ** (1.0 - self.alpha)
            s = torch.where(
                (of_inputs > 0) & (of_weights > 0) & torch.isfinite(s), s, 1.0
            )  # a dead channel stays as it is
            for parameter in smoothing.scaled:
                parameter.div_(s.to(parameter))
            for layer in smoothing.layers:
                layer.weight.mul_(s.to(layer.weight))
            state.on_progress("SmoothQuant", done + 1, len(found))


def find_smoothings(network: nn.Module, graph: fx.Graph) -> list[Smoothing]:
    """All normalizations that can be smoothed, in graph order."""
    operations = describe_graph(network, graph)
    calls = Counter(str(node.target) for node in graph.nodes if node.op == "call_module")
    read = read_past_their_forward(network, graph)
    holders = Counter(id(p) for module in network.modules() for p in module.parameters(recurse=False))
    found = []
    for node in graph.nodes:
        scaled = _gain_and_bias(network, node, operations)
        layers = _linear_readers(network, node, operations)
        if scaled is None or layers is None:
            continue
        names = [str(user.target) for user in _readers(node, operations)]
        names += [str(node.target)] if node.op == "call_module" else []
        parameters = [*scaled, *(layer.weight for layer in layers)]
        if all(calls[n] == 1 and n not in read for n in names) and all(holders[id(p)] == 1 for p in parameters):
            found.append(Smoothing(node, scaled, tuple(layers)))
    return found


def _gain_and_bias(
    network: nn.Module, node: fx.Node, operations: Mapping[fx.Node, Operation]
) -> tuple[Tensor, ...] | None:
    """The parameters of a normalization's last step, one number per feature; None if `node` is no such step."""
    if node.op == "call_module":
        norm = network.get_submodule(str(node.target))
        if isinstance(norm, nn.LayerNorm) and norm.weight is not None and norm.weight.ndim == 1:
            return (norm.weight,) if norm.bias is None else (norm.weight, norm.bias)
        return None
    gains = [n for n in node.all_input_nodes if n.op == "get_attr"]
    if len(gains) != 1 or operations[node].role is not Role.FLOAT or operation_name(node) != "mul":
        return None
    owner, _, name = str(gains[0].target).rpartition(".")
    gain = getattr(network.get_submodule(owner), name)
    return (gain,) if isinstance(gain, nn.Parameter) and gain.ndim == 1 and len(gains[0].users) == 1 else None


def _readers(node: fx.Node, operations: Mapping[fx.Node, Operation]) -> list[fx.Node]:
    """The nodes that read the tensor, looking through operations that change nothing in evaluation."""
    found: list[fx.Node] = []
    pending = list(node.users)
    while pending:
        user = pending.pop(0)
        operation = operations[user]
        if isinstance(operation, Move) and operation.identity:
            pending += list(user.users)
        elif operation.role is not Role.SIZE:
            found.append(user)
    return found


def _linear_readers(
    network: nn.Module, node: fx.Node, operations: Mapping[fx.Node, Operation]
) -> list[nn.Linear] | None:
    """The linear layers that read the tensor; None if there are none, or other readers."""
    found: list[nn.Linear] = []
    for user in _readers(node, operations):
        layer = network.get_submodule(str(user.target)) if user.op == "call_module" else None
        if not isinstance(layer, nn.Linear) or not is_layer(layer) or not owns_weight(layer):
            return None
        found.append(layer)
    return found or None


def _largest_magnitudes(state: PTQState, graph: fx.Graph, nodes: list[fx.Node]) -> dict[fx.Node, Tensor]:
    """max |x_j| over the calibration data, for each feature of each node's tensor."""
    store = TensorStore(state.network, graph, state.batches, state.call_format)
    wanted, found = set(nodes), {}
    for node in graph.nodes:
        if node.op in ("placeholder", "output"):
            continue
        kept = store.advance(node)
        if node in wanted:
            found[node] = torch.stack([x.abs().flatten(0, -2).amax(dim=0) for x in kept]).amax(dim=0)
    return found
