"""Widths in force, against the grids that a policy of that width would make."""

import pytest
import torch
from torch import nn

import qat
from qat.transform import FLOAT, bits_in_force, quantizers, set_bits
from tests.training.user_modules import Net, images

BATCH = images(32).tensors[0]


def prepared(policy: object = "w2a2") -> nn.Module:
    network = qat.prepare(Net(), policy).eval()
    qat.calibrate(network, [BATCH])
    return network


def outputs(network: nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return network(BATCH)


@pytest.mark.parametrize("bits", [8, 4, 3])
def test_a_stage_is_the_network_that_was_prepared_with_its_bits(bits: int) -> None:
    network, reference = prepared("w2a2"), prepared(f"w{bits}a{bits}")
    set_bits(network, bits)
    assert bits_in_force(network) == bits
    qat.calibrate(network, [BATCH])
    assert {n: q.spec for n, q in quantizers(network).items()} == {n: q.spec for n, q in quantizers(reference).items()}
    assert torch.equal(outputs(network), outputs(reference))
    assert torch.equal(outputs(qat.convert(network)), outputs(qat.convert(reference)))


def test_back_at_the_policy_it_is_the_policys_network() -> None:
    network = prepared()
    expected = outputs(network)
    for bits in (8, FLOAT, 3, None):
        set_bits(network, bits)
        qat.calibrate(network, [BATCH])
        assert bits_in_force(network) == bits
    assert torch.equal(outputs(network), expected)


def test_what_has_more_bits_keeps_them_and_its_range() -> None:
    network = prepared("w4a4")
    wide = {name for name, q in quantizers(network).items() if q.spec.grid.bits == 8}
    assert wide
    set_bits(network, 6)
    waiting = {name for name, q in quantizers(network).items() if not q.ready}
    assert waiting == set(quantizers(network)) - wide


def test_float_is_float() -> None:
    network = prepared()
    set_bits(network, FLOAT)
    torch.testing.assert_close(outputs(network), outputs(Net().eval()))
    set_bits(network, None)
    assert not any(q.ready for q in quantizers(network).values())


@pytest.mark.parametrize("name", ["Ternary", "SAWB", "APoT"])
def test_levels_of_their_own_stay(name: str) -> None:
    rules = {"preset": "w2a2", "weight": {"quantizer": name}, "first_last_bits": None}
    network = prepared(qat.load_policy(rules))
    weights = network.conv1.weight_quantizer
    before = weights.spec
    set_bits(network, 8)
    assert weights.spec == before
    assert weights.ready
    assert bits_in_force(network) == 8


def test_no_parameter_changes_its_shape_or_identity() -> None:
    network = prepared()
    before = {name: (id(p), p.shape) for name, p in network.named_parameters()}
    set_bits(network, 8)
    qat.calibrate(network, [BATCH])
    assert {name: (id(p), p.shape) for name, p in network.named_parameters()} == before
