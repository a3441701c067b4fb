"""Bias correction (Nagel et al. 2019, "Data-free quantization", arXiv:1906.04721, section 4.2), from data."""

from __future__ import annotations

import torch
from torch import Tensor, fx, nn

from qat.nn import Convolution
from qat.ptq.base import Pass
from qat.ptq.batchnorm_reestimation import has_statistics, move_mean
from qat.ptq.segment import layer_segments
from qat.ptq.side_by_side import SideBySideRun
from qat.ptq.state import PTQState


class BiasCorrection(Pass):
    """Gives every layer's output the mean of the float network, channel by channel, from the first layer to the last.

    The shift E[W~ x^] - E[W x] is measured on the calibration data, behind the layers corrected before, and subtracted from
    the layer's bias; where a BatchNorm follows a convolution, and no other layer, its running mean takes it instead.
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
                _correct(state, networks, segments[node].nodes)
                done += 1
                state.on_progress("bias correction", done, len(segments))


@torch.no_grad()
def _correct(state: PTQState, networks: SideBySideRun, nodes: tuple[fx.Node, ...]) -> None:
    """Correct a layer by its bias, or by the BatchNorm behind it. The second time, nothing is left to correct."""
    assert state.reference is not None
    source, name = nodes[0].all_input_nodes[0], str(nodes[0].target)
    layer = state.network.get_submodule(name)
    after = _mean(layer, networks.quantized[source])
    before = _mean(state.reference.get_submodule(name), networks.float[source])
    behind = str(nodes[1].target) if len(nodes) > 1 and nodes[1].op == "call_module" else ""
    norm = state.network.get_submodule(behind)
    calls = [n for n in networks.graph.nodes if n.op == "call_module" and state.network.get_submodule(n.target) is norm]
    if len(calls) == 1 and has_statistics(norm) and not isinstance(layer, nn.Linear):  # there it may normalise tokens
        move_mean(norm, state.reference.get_submodule(behind), after, before)
    elif isinstance(layer.bias, Tensor):
        layer.bias.sub_((after - before).to(layer.bias))
    else:
        layer.bias = nn.Parameter((before - after).to(layer.weight))  # type: ignore[arg-type]


def _mean(layer: nn.Module, batches: list[Tensor]) -> Tensor:
    """The mean of a layer's output over all its positions: float64 (channels,)."""
    axis = -1 - len(layer.kernel_size) if isinstance(layer, Convolution) else -1
    total, positions = torch.zeros((), dtype=torch.float64), 0
    for x in batches:
        rows = layer(x).double().movedim(axis, -1).flatten(0, -2)
        total, positions = total.to(rows.device) + rows.sum(dim=0), positions + len(rows)
    return total / positions
