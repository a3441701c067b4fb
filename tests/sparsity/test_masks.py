"""Masks against numpy and brute force."""

from __future__ import annotations

import copy
from itertools import combinations
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils import prune

import qat
from qat.sparsity import Pattern, count_zeros, keep_largest, keep_largest_of_all, keep_pattern, violations


@pytest.fixture
def weight() -> torch.Tensor:
    return torch.randn(5, 8, 3, 3, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("sparsity", [0.0, 0.3, 0.77, 0.999])
def test_the_smallest_go(weight: torch.Tensor, sparsity: float) -> None:
    keep = keep_largest(weight, sparsity).numpy()
    magnitudes = np.sort(np.abs(weight.numpy()).ravel())
    number = round(sparsity * magnitudes.size)
    assert (~keep).sum() == number
    if number:
        assert np.abs(weight.numpy())[~keep].max() == magnitudes[number - 1]


def test_one_threshold_for_all_layers_prunes_the_layer_of_small_weights(weight: torch.Tensor) -> None:
    keep = keep_largest_of_all({"small": 0.01 * weight, "large": weight}, 0.5)
    assert not keep["small"].float().mean() > 0.05
    assert keep["large"].float().mean() > 0.95


@pytest.mark.parametrize("pattern", [Pattern(2, 4), Pattern(1, 4), Pattern(1, 2), Pattern(3, 8)], ids=str)
def test_a_pattern_keeps_the_best_of_all_choices_in_each_group(weight: torch.Tensor, pattern: Pattern) -> None:
    """Oracle: all ways to keep so many of a group."""
    keep = keep_pattern(weight, pattern)
    assert violations(weight * keep, pattern) == 0
    groups, kept = (t.movedim(1, -1).reshape(-1, pattern.group) for t in (weight.abs(), keep))
    for group, mask in zip(groups.tolist(), kept, strict=True):
        best = max(sum(group[i] for i in chosen) for chosen in combinations(range(pattern.group), pattern.kept))
        assert sum(value for value, stays in zip(group, mask.tolist(), strict=True) if stays) == pytest.approx(best)


def test_a_pattern_is_reached_in_steps_that_keep_what_is_zero(weight: torch.Tensor) -> None:
    pattern, weight = Pattern(2, 4), weight.clone()
    for sparsity in (0.1, 0.25, 0.4, 0.5):
        before = weight == 0
        keep = keep_pattern(weight, pattern, sparsity)
        assert int((~keep).sum()) == round(sparsity * weight.numel())
        assert not bool((keep & before).any())
        weight *= keep
        weight += 0.3 * torch.randn_like(weight) * keep  # what remains goes on learning
    assert violations(weight, pattern) == 0


def test_masks_of_torch_are_zeros_in_the_integers() -> None:
    """torch.nn.utils.prune: the user's mask lies before the quantizer."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4)).eval()
    prune.l1_unstructured(model[0], "weight", 0.5)
    prune.random_unstructured(model[2], "weight", 0.25)
    x = torch.randn(32, 8)
    prepared = qat.prepare(model, "w4a8", x)
    qat.calibrate(prepared, [x])
    found = count_zeros(qat.convert(prepared))
    assert [zeros.zeros >= least for zeros, least in zip(found.values(), (64, 16), strict=True)] == [True, True]


@pytest.mark.parametrize("parametrize", [
    (lambda layer: prune.l1_unstructured(layer, "weight", 0.5), lambda layer: prune.remove(layer, "weight")),
    (nn.utils.weight_norm, nn.utils.remove_weight_norm),
    (nn.utils.spectral_norm, nn.utils.remove_spectral_norm),
])  # fmt: skip
@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated")
def test_what_computes_a_weight_can_be_removed_from_a_prepared_layer(parametrize: Any) -> None:
    put, remove = parametrize
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4)).eval(), torch.randn(32, 8)
    put(model[0])
    prepared = qat.prepare(model, "w4a8", x)
    qat.calibrate(prepared, [x])
    before = prepared(x)
    remove(prepared[0])
    assert "weight" in dict(prepared[0].named_parameters())
    torch.testing.assert_close(prepared(x), before)
    copied = copy.deepcopy(prepared)
    copied(x).sum().backward()
    assert bool(copied[0].weight.grad.any())
    torch.testing.assert_close(qat.convert(prepared)(x), before, rtol=0, atol=1e-3)


def test_zeros_of_affine_weights_are_their_zero_points() -> None:
    torch.manual_seed(0)
    layer = nn.Linear(8, 16)
    with torch.no_grad():
        layer.weight += 1.0
        layer.weight[:, :4] = 0.0
    weights = {"bits": 4, "symmetric": False, "granularity": "per_channel"}
    policy = qat.load_policy({"rules": {"all": {"match": "*", "weight": weights, "activation": None}}})
    x = torch.randn(4, 8)
    prepared = qat.prepare(nn.Sequential(layer), policy, x)
    qat.calibrate(prepared, [x])
    (zeros,) = count_zeros(qat.convert(prepared), Pattern(2, 4)).values()
    assert (zeros.weights, zeros.zeros) == (128, 64)
    assert zeros.violations == 16  # the other half of each row
