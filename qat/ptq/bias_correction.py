"""Bias correction (Nagel et al. 2019, "Data-free quantization", arXiv:1906.04721, section 4.2), from data."""

from __future__ import annotations

import torch
from torch import Tensor, fx, nn

from qat.ptq.base import Pass
from qat.ptq.segment import layer_segments
from qat.ptq.state import PTQState
from qat.ptq.walk import Walk


class BiasCorrection(Pass):
    """Gives every layer's output the mean, channel by channel, that it has in the float network, from first to last layer.

    The shift E[W~ x^] - E[W x] is measured on the calibration data behind the corrected layers before, and taken off the
    layer's bias; where a BatchNorm follows a convolution it is added to the running mean, which is subtracted there.

    Differs from the paper: the shift is measured (its appendix D), not calculated from BatchNorm's statistics.
    """

    def apply(self, state: PTQState) -> None:
        walk = Walk(state)
        segments = {segment.nodes[0]: segment for segment in layer_segments(state.network, walk.graph)}
        done = 0
        for node in walk:
            if node in segments:
                _subtract(state.network, segments[node].nodes, _shift(state, walk, node))
                done += 1
                state.listener("bias correction", done, len(segments))


@torch.no_grad()
def _shift(state: PTQState, walk: Walk, node: fx.Node) -> Tensor:
    """E[quantized] - E[float] of the layer's output, over all its positions: float64 (channels,)."""
    assert state.reference is not None
    source, name = node.all_input_nodes[0], str(node.target)
    layer, reference = state.network.get_submodule(name), state.reference.get_submodule(name)
    axis = 1 if isinstance(layer, nn.Conv1d | nn.Conv2d) else -1
    total, positions = torch.zeros((), dtype=torch.float64), 0
    for x, y in zip(walk.quantized[source], walk.float[source], strict=True):
        shift = (layer(x).double() - reference(y).double()).movedim(axis, -1).flatten(0, -2)
        total, positions = total.to(shift.device) + shift.sum(dim=0), positions + len(shift)
    return total / positions


@torch.no_grad()
def _subtract(network: nn.Module, nodes: tuple[fx.Node, ...], shift: Tensor) -> None:
    layer = network.get_submodule(str(nodes[0].target))
    norm = network.get_submodule(str(nodes[1].target)) if len(nodes) > 1 and nodes[1].op == "call_module" else None
    channels_meet = not isinstance(
        layer, nn.Linear
    )  # behind a linear layer on tokens, BatchNorm1d normalises the tokens
    if channels_meet and isinstance(norm, nn.BatchNorm1d | nn.BatchNorm2d) and norm.running_mean is not None:
        norm.running_mean += shift.to(norm.running_mean)
    elif isinstance(layer.bias, Tensor):
        layer.bias -= shift.to(layer.bias)
    else:
        layer.bias = nn.Parameter(-shift.to(layer.weight))  # type: ignore[arg-type]
