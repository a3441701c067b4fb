"""Bias correction (Nagel et al. 2019, "Data-free quantization", arXiv:1906.04721, section 4.2), from data."""

from __future__ import annotations

import torch
from torch import Tensor, fx, nn

from qat.nn import Convolution, is_batch_norm
from qat.ptq.base import Pass
from qat.ptq.segment import layer_segments
from qat.ptq.side_by_side import SideBySideRun
from qat.ptq.state import PTQState


class BiasCorrection(Pass):
    """Gives every layer's output the mean of the float network, channel by channel, from the first layer to the last.

    The shift E[W~ x^] - E[W x] is measured on the calibration data, behind the layers corrected before, and subtracted from
    the layer's bias; where a BatchNorm follows a convolution it is added to the running mean, which is subtracted there.
    Embeddings, which have no bias, stay as they are.

    Differs from the paper: the shift is measured (its appendix D), not derived from BatchNorm's statistics.
    """

    def apply(self, state: PTQState) -> None:
        networks = SideBySideRun(state)
        segments = {
            segment.nodes[0]: segment
            for segment in layer_segments(state.network, networks.graph)
            if not isinstance(state.network.get_submodule(str(segment.nodes[0].target)), nn.Embedding)
        }
        done = 0
        for node in networks:
            if node in segments:
                _subtract(state.network, segments[node].nodes, _shift(state, networks, node))
                done += 1
                state.on_progress("bias correction", done, len(segments))


@torch.no_grad()
def _shift(state: PTQState, networks: SideBySideRun, node: fx.Node) -> Tensor:
    """E[quantized] - E[float] of the layer's output, over all its positions: float64 (channels,)."""
    assert state.reference is not None
    source, name = node.all_input_nodes[0], str(node.target)
    layer, reference = state.network.get_submodule(name), state.reference.get_submodule(name)
    axis = -1 - len(layer.kernel_size) if isinstance(layer, Convolution) else -1
    total, positions = torch.zeros((), dtype=torch.float64), 0
    for x, y in zip(networks.quantized[source], networks.float[source], strict=True):
        shift = (layer(x).double() - reference(y).double()).movedim(axis, -1).flatten(0, -2)
        total, positions = total.to(shift.device) + shift.sum(dim=0), positions + len(shift)
    return total / positions


@torch.no_grad()
def _subtract(network: nn.Module, nodes: tuple[fx.Node, ...], shift: Tensor) -> None:
    layer = network.get_submodule(str(nodes[0].target))
    norm = network.get_submodule(str(nodes[1].target)) if len(nodes) > 1 and nodes[1].op == "call_module" else None
    mean = norm.running_mean if norm is not None and is_batch_norm(norm) else None
    if isinstance(mean, Tensor) and not isinstance(layer, nn.Linear):  # BatchNorm1d of tokens normalises the tokens
        mean += shift.to(mean)
    elif isinstance(layer.bias, Tensor):
        layer.bias.sub_(shift.to(layer.bias))
    else:
        layer.bias = nn.Parameter(-shift.to(layer.weight))  # type: ignore[arg-type]
