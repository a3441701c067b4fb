"""Weights that are computed in each forward are rounded as others are, and pruned ones stay 0."""

import copy
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, prune

import qat
from qat.nn import as_quantized
from qat.ptq import BRECQ, GPTQ, AdaRound, Calibrate, Pass, apply_passes

ROUNDING = {"GPTQ": GPTQ(), "AdaRound": AdaRound(100), "BRECQ": BRECQ(100)}


class Network(nn.Module):
    """Two layers; the weight of the second is normalized in forward."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Linear(12, 16)
        self.weight = nn.Parameter(torch.randn(5, 16))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(F.relu(self.first(x)), F.normalize(self.weight, dim=1))


def parametrized() -> Network:
    network = Network()
    parametrizations.weight_norm(network.first)
    return network


def masked() -> Network:
    network = Network()
    prune.l1_unstructured(network.first, "weight", 0.6)
    return network


def plain(network: Network) -> nn.Module:
    """The network with a first weight that can be set, in place."""
    if parametrize.is_parametrized(network.first):
        parametrize.remove_parametrizations(network.first, "weight")
    elif prune.is_pruned(network):
        prune.remove(network.first, "weight")
    return network


def quantized(network: nn.Module, *passes: Pass, policy: str = "w3a8") -> nn.Module:
    """Calibrated with inputs that are alike, so that each weight could make up for another."""
    torch.manual_seed(1)
    batches = list(torch.randn(2, 32, 1) + 0.1 * torch.randn(2, 32, 12))
    return apply_passes([Calibrate("MinMax"), *passes], network.eval(), policy, batches)


@pytest.mark.parametrize("make", [parametrized, masked])
@pytest.mark.parametrize("name", ROUNDING)
def test_computed_weights_are_rounded_as_plain_ones(name: str, make: Callable[[], Network]) -> None:
    prepared = quantized(make(), ROUNDING[name])
    expected = quantized(plain(make()), ROUNDING[name])
    x = torch.randn(8, 12)
    assert torch.equal(prepared(x), expected(x))
    layers = [m for m in prepared.modules() if getattr(m, "weight_quantizer", None) is not None]
    assert len(layers) == 2
    for layer in map(as_quantized, layers):
        assert layer.weight_quantizer is not None
        assert torch.equal(layer.weight_quantizer(layer.weight), layer.weight)
    assert torch.equal(copy.deepcopy(prepared)(x), prepared(x))
    assert torch.equal(qat.convert(copy.deepcopy(prepared))(x), qat.convert(expected)(x))


def test_gptq_keeps_pruned_weights_zero() -> None:
    network = masked()
    prepared = quantized(network, GPTQ(), policy="w8a8")
    assert isinstance(network.first.weight, Tensor)
    zero = network.first.weight == 0
    assert zero.sum() > 100
    assert not as_quantized(prepared.first).weight[zero].any()
