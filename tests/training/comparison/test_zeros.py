"""Pruned weights are looked for where the integer model stores them, whatever the layer's layout."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import qat
from qat.nn import outputs_first
from qat.sparsity import Pattern, keep_pattern
from qat.training.comparison.zeros import zeros_of_layers

AFFINE = {"weight": {"bits": 4, "granularity": "per_group", "group_size": 4, "symmetric": False}, "activation": None}
LAYERS: dict[str, tuple[nn.Module, tuple[int, ...], Any]] = {
    "transposed": (nn.ConvTranspose2d(8, 4, (2, 3)), (1, 8, 4, 4), "w8a8"),
    "transposed, square": (nn.ConvTranspose1d(4, 4, 3), (1, 4, 6), "w8a8"),
    "transposed, in groups": (nn.ConvTranspose1d(8, 6, 3, groups=2), (1, 8, 6), "w8a8"),
    "transposed, weight alone": (nn.ConvTranspose1d(8, 6, 3), (1, 8, 6), "w4"),
    "dynamic range": (nn.Linear(8, 6), (3, 8), "w8_dynamic"),
    "affine in groups": (nn.Linear(8, 6), (3, 8), {"rules": {"all": {"match": "*", **AFFINE}}}),
}


@pytest.mark.parametrize("case", LAYERS)
def test_pruned_weights_are_found_in_every_layout(case: str) -> None:
    """Oracle: one pruned weight that is brought back is one code that is not zero; 2:4 holds along the inputs."""
    layer, shape, policy = LAYERS[case]
    torch.manual_seed(0)
    x = torch.randn(shape)
    weight = layer.get_parameter("weight")
    mask = outputs_first(layer, keep_pattern(outputs_first(layer, weight), Pattern(2, 4)))
    found = []
    for brought_back in (0, 1):
        with torch.no_grad():
            weight.uniform_(0.5, 1.0)
            weight *= mask
            weight[tuple((~mask).nonzero()[-1])] += brought_back
        prepared = qat.prepare(nn.Sequential(layer), policy, x)
        qat.calibrate(prepared, [x])
        (zeros,) = zeros_of_layers(qat.convert(prepared), {"0": mask}, Pattern(2, 4))
        assert zeros.masked == weight.numel() // 2
        found.append((zeros.masked_not_zero, zeros.violations))
    assert found == [(0, 0), (1, 1)]


@pytest.mark.parametrize("brought_back", [0, 1])
def test_pruned_weights_of_a_layer_in_float_are_counted_in_float(brought_back: int) -> None:
    model, x = nn.Sequential(nn.Linear(8, 6), nn.Linear(6, 4)), torch.randn(3, 8)
    mask = torch.arange(8).expand(6, 8) < 3
    with torch.no_grad():
        model[0].weight.masked_fill_(~mask, 0.0)[5, 7] += brought_back
    prepared = qat.prepare(model, {"rules": {"last": {"match": "1", "weight": {"bits": 8}, "activation": None}}}, x)
    qat.calibrate(prepared, [x])
    (zeros,) = (zeros for zeros in zeros_of_layers(qat.convert(prepared), {"0": mask}, None) if zeros.layer == "0")
    assert (zeros.weights, zeros.masked, zeros.masked_not_zero) == (48, 30, brought_back)


def test_a_mask_of_a_layer_that_the_integer_model_does_not_have_proves_nothing() -> None:
    prepared = qat.prepare(nn.Sequential(nn.Linear(8, 6)), "w8a8", x := torch.randn(3, 8))
    qat.calibrate(prepared, [x])
    mask = torch.arange(8) < 3
    found = zeros_of_layers(qat.convert(prepared), {"gone": mask.expand(6, 8)}, None)
    assert [(zeros.layer, zeros.masked, zeros.masked_not_zero) for zeros in found] == [("0", 0, 0), ("gone", 30, 30)]


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.again = nn.Linear(4, 6), nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        return self.again(self.again(self.first(x)).relu())


def test_a_layer_that_is_called_twice_counts_once() -> None:
    torch.manual_seed(0)
    model, x = Twice(), torch.randn(8, 4)
    prepared = qat.prepare(model, "w8a8", x)
    qat.calibrate(prepared, [x])
    found = zeros_of_layers(qat.convert(prepared), {}, None)
    assert sum(layer.weights for layer in found) == 4 * 6 + 6 * 6


class Inside(nn.Module):
    """One layer under a name."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name
        self.add_module(name, nn.Linear(4, 4))

    def forward(self, x: Tensor) -> Tensor:
        return self.get_submodule(self.name)(x).relu()


class OneName(nn.Module):
    """Layers that have the same name in a graph, one of them called twice. branches: on values, so that there is no graph."""

    def __init__(self, branches: bool) -> None:
        super().__init__()
        self.branches = branches
        self.a, self.a_b, self.twice, self.x = Inside("b_c"), Inside("c"), nn.Linear(4, 4), Inside("layer")
        self.twice_2, self.both = nn.Linear(4, 4), nn.Bilinear(4, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        if self.branches and x.sum() > 1e9:
            x = -x
        x = self.x(self.twice_2(self.twice(self.twice(self.a_b(self.a(x))).relu()).relu()))
        return self.both(x, x)


@pytest.mark.parametrize(("policy", "branches"), [("w8a8", False), ("w8_dynamic", False), ("w4", False), ("w4", True)])
def test_masks_of_layers_with_one_name_are_each_held_against_their_own(policy: str, branches: bool) -> None:
    """Oracle: one pruned weight after the other is brought back, and is one code that is not zero."""
    torch.manual_seed(0)
    model, x = OneName(branches), torch.randn(8, 4)
    names = ["a.b_c", "a_b.c", "twice", "twice_2", "x.layer", "both.weight"]
    weights = {name: model.get_parameter(name.removesuffix(".weight") + ".weight") for name in names}
    masks = {name: torch.rand(weight.shape) < 0.5 for name, weight in weights.items()}
    for brought_back in ["", *names]:
        with torch.no_grad():
            for name, weight in weights.items():
                weight.uniform_(0.5, 1.0).mul_(masks[name])
            if brought_back:
                weights[brought_back][tuple((~masks[brought_back]).nonzero()[0])] = 1.0
        prepared = qat.prepare(model, policy, x)
        qat.calibrate(prepared, [x])
        found = zeros_of_layers(qat.convert(prepared), masks, None)
        assert sum(zeros.masked for zeros in found) == sum(int((~mask).sum()) for mask in masks.values())
        assert sum(zeros.masked_not_zero for zeros in found) == bool(brought_back), brought_back
