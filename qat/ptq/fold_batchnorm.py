"""BatchNorm folded into the weights of the layer before it."""

from __future__ import annotations

import torch
from torch import nn

from qat.nn import gain_and_shift, is_layer, outputs_first, owns_weight
from qat.operations import BatchNormalization, describe_graph
from qat.ptq.base import Pass, Stage
from qat.ptq.state import PTQState


class FoldBatchNorm(Pass):
    """Multiplies each layer's weight by the gain of the BatchNorm behind it, and puts nn.Identity in the BatchNorm's place.

    `prepare` keeps BatchNorm as a module; a network for another runtime may have to be folded before its ranges are
    observed. With one scale per channel, folding does not change any rounding. A layer or BatchNorm that runs twice, or
    whose parameters something else reads, is left as it is, and so is a BatchNorm of tokens behind a linear layer, or of
    what an embedding looks up.
    """

    stage = Stage.FLOAT

    def apply(self, state: PTQState) -> None:
        graph = state.graph()
        once = state.used_once(graph)
        for node, operation in describe_graph(state.network, graph).items():
            if not isinstance(operation, BatchNormalization):
                continue
            source = node.all_input_nodes[0]
            layer, norm = once.get(source), once.get(node)
            if layer is None or norm is None or len(source.users) != 1:
                continue
            if is_layer(layer) and owns_weight(layer) and not isinstance(layer, nn.Embedding):
                _fold(layer, norm)
                state.network.set_submodule(str(node.target), nn.Identity())


@torch.no_grad()
def _fold(layer: nn.Module, norm: nn.Module) -> None:
    gain, shift = gain_and_shift(norm)
    assert isinstance(layer.weight, nn.Parameter)
    if isinstance(layer.bias, nn.Parameter):
        shift = shift + layer.bias.double() * gain
    weight = outputs_first(layer, layer.weight)
    weight = weight * gain.to(weight.dtype).reshape(-1, *[1] * (weight.ndim - 1))
    layer.weight.copy_(outputs_first(layer, weight))
    layer.bias = nn.Parameter(shift.to(layer.weight.dtype))
