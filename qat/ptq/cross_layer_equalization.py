"""Cross-layer equalization (Nagel et al. 2019, "Data-free quantization", arXiv:1906.04721, section 4.1)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from qat.arguments import is_whole_number
from qat.nn import gain_and_shift, is_layer, owns_weight
from qat.operations import BatchNormalization, describe_graph
from qat.ptq.base import Pass, Stage
from qat.ptq.state import PTQState

SCALE_EQUIVARIANT: tuple[object, ...] = (
    nn.ReLU, F.relu, torch.relu, "relu", "relu_", nn.Identity, nn.Dropout, nn.Dropout2d, nn.MaxPool2d, nn.AvgPool2d,
    nn.AdaptiveAvgPool2d, F.max_pool2d, F.avg_pool2d,
)  # fmt: skip
"""Operations with f(s x) = s f(x) for every s > 0, channel by channel. ReLU6 has a bound of 6 that does not scale."""

DEAD_CHANNEL_RATIO = 1e-4
"""A channel whose range is below this fraction of the largest one stays as it is: equalized, it would be dominated by its
bias."""


class LayerPair(NamedTuple):
    """Two layers between which channels can be rescaled: first -> (norm) -> scale-equivariant operations -> second."""

    first: nn.Module
    norm: nn.Module | None
    second: nn.Module

    def ranges(self) -> tuple[Tensor, Tensor]:
        """(r1, r2), each float64 (channels,): the largest |weight| of each channel as an output and as an input (eq. 9)."""
        weight = _weight(self.first).double()
        r1 = weight.abs().flatten(1).amax(dim=1)
        if self.norm is not None:
            r1 = r1 * gain_and_shift(self.norm)[0].abs()
        return r1, _by_input(self.second).double().abs().amax(dim=(1, 3)).flatten()

    def rescale(self, s: Tensor) -> None:
        """Divide each channel by s behind the first layer and multiply by it in the second: the function stays the same."""
        scaled = [self.norm.weight, self.norm.bias] if self.norm is not None else [self.first.weight, self.first.bias]
        for parameter in scaled:
            if isinstance(parameter, Tensor):
                parameter.div_(s.to(parameter).reshape(-1, *[1] * (parameter.ndim - 1)))
        view = _by_input(self.second)
        view.mul_(s.to(view).reshape(view.shape[0], 1, view.shape[2], 1))


class CrossLayerEqualization(Pass):
    """Rescales channels between pairs of layers until the ranges of outputs of the first and inputs of the second are equal.

    s = sqrt(r1 r2) / r2 (eq. 11) makes both ranges sqrt(r1 r2); pairs take turns until no scale changes. Pairs are read off the
    graph: a layer, its BatchNorm, ReLU and pooling, and one layer that alone reads the result. The float function stays the
    same.

    Differs from the paper: nearly dead channels stay as they are; BatchNorm stays a module, r1 is that of weight times gain,
    and the factor goes into gamma and beta; biases are not absorbed; ReLU6 is not replaced by ReLU, so there is no pair across
    it (MobileNetV2 has none).
    """

    stage = Stage.FLOAT

    def __init__(self, rounds: int = 20) -> None:
        if not is_whole_number(rounds):
            raise ValueError(f"rounds={rounds!r} is not possible: write a whole number, 1 or more.")
        self.rounds = rounds

    @torch.no_grad()
    def apply(self, state: PTQState) -> None:
        graph = state.graph()
        pairs = find_pairs(state.network, graph, state.used_once(graph))
        for i in range(self.rounds):
            state.on_progress("cross-layer equalization", i, self.rounds)
            moved = 0.0
            for pair in pairs:
                r1, r2 = pair.ranges()
                alive = (r1 > DEAD_CHANNEL_RATIO * r1.max()) & (r2 > DEAD_CHANNEL_RATIO * r2.max())
                s = torch.where(alive, torch.sqrt(r1 / r2), 1.0)
                pair.rescale(s)
                moved = max(moved, float(s.log().abs().max()))
            if moved < 1e-4:
                break
        state.on_progress("cross-layer equalization", self.rounds, self.rounds)


def find_pairs(network: nn.Module, graph: fx.Graph, once: Mapping[fx.Node, nn.Module]) -> list[LayerPair]:
    """All pairs, in graph order. once: `PTQState.used_once`; no other module takes part."""
    found = []
    operations = describe_graph(network, graph)
    for node in graph.nodes:
        if (first := once.get(node)) is None or not _can_be_rescaled(first):
            continue
        norm, end = None, _only_user(node)
        if end is not None and isinstance(operations[end], BatchNormalization):
            norm, end = once.get(end), _only_user(end)
            if norm is None or getattr(norm, "weight", None) is None:
                continue  # nowhere to put the factor
        while end is not None and _is_scale_equivariant(network, end):
            end = _only_user(end)
        second = None if end is None else once.get(end)
        if second is not None and _can_be_rescaled(second) and _channels_meet(first, second):
            found.append(LayerPair(first, norm, second))
    return found


def _can_be_rescaled(module: nn.Module) -> bool:
    """Whether the module is a layer whose weight is [out, in, ...] and can be set."""
    return isinstance(module, nn.Conv1d | nn.Conv2d | nn.Linear) and is_layer(module) and owns_weight(module)


def _only_user(node: fx.Node) -> fx.Node | None:
    return next(iter(node.users)) if len(node.users) == 1 else None


def _is_scale_equivariant(network: nn.Module, node: fx.Node) -> bool:
    operation = type(network.get_submodule(str(node.target))) if node.op == "call_module" else node.target
    return operation in SCALE_EQUIVARIANT


def _channels_meet(first: nn.Module, second: nn.Module) -> bool:
    """Whether each output channel of `first` is one input channel of `second`."""
    both_linear = isinstance(first, nn.Linear) and isinstance(second, nn.Linear)
    same_kind = both_linear or not (isinstance(first, nn.Linear) or isinstance(second, nn.Linear))
    return same_kind and len(_weight(first)) == _by_input(second).shape[0] * _by_input(second).shape[2]


def _weight(layer: nn.Module) -> Tensor:
    assert isinstance(layer.weight, Tensor)
    return layer.weight


def _by_input(layer: nn.Module) -> Tensor:
    """A view of the weight: [O, I / groups, ...] -> [groups, O / groups, I / groups, kernel]; input channels on axes 0, 2."""
    weight = _weight(layer).detach()
    groups = layer.groups if isinstance(layer, nn.Conv1d | nn.Conv2d) else 1
    return weight.view(groups, len(weight) // groups, weight.shape[1], -1)
