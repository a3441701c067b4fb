"""FP8, MX and NVFP4 in packed files: back bit for bit, in the bits of the format, and able to go on learning."""

import math
from pathlib import Path

import pytest
import torch
from torch import nn

import qat
from qat.transform import quantizers
from tests.oracles import floating_point as oracle

PRESETS = ("fp8", "mxfp8", "mxfp6", "mxfp4", "mxint8", "nvfp4")
SCALES = {"fp8": (4, 192), "nvfp4": (1, 16)}
"""Bytes of a scale, and weights that share one; of the others 1 and 32."""


def trained(policy: str) -> tuple[nn.Module, torch.Tensor]:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(192, 96), nn.ReLU(), nn.Linear(96, 40), nn.ReLU(), nn.Linear(40, 4))
    x = torch.randn(8, 192)
    prepared = qat.prepare(network, qat.load_policy(policy, first_last_bits=None), x)
    qat.calibrate(prepared, [x])
    step(prepared.train(), x)
    prepared(x)  # the scales of the weights after the step
    return prepared.eval(), x


def step(network: nn.Module, x: torch.Tensor) -> None:
    optimizer = torch.optim.SGD(network.parameters(), lr=0.01)
    network(x).square().mean().backward()
    optimizer.step()
    optimizer.zero_grad()


@pytest.mark.parametrize("policy", [name + end for name in PRESETS for end in ("", "_weights")])
def test_a_network_comes_back_bit_for_bit(policy: str, tmp_path: Path) -> None:
    prepared, x = trained(policy)
    loaded = qat.load_quantized(qat.save_quantized(prepared, tmp_path / "prepared"))
    integer = qat.convert(prepared)
    again = qat.load_quantized(qat.save_quantized(integer, tmp_path / "integer"))
    for network in (loaded, integer, again):
        assert torch.equal(network(x), prepared(x))
    ours, theirs = quantizers(prepared), quantizers(loaded)
    assert ours.keys() == theirs.keys()
    for name, quantizer in ours.items():
        if quantizer.is_weight:
            weight = name.replace("_quantizer", "")
            codes = [q.quantize(m.get_parameter(weight)) for q, m in ((quantizer, prepared), (theirs[name], loaded))]
            assert torch.equal(*codes)
    before = loaded[0].weight.detach().clone()
    step(loaded.train(), x)
    assert not torch.equal(loaded[0].weight, before)


@pytest.mark.parametrize("name", PRESETS)
def test_codes_and_scales_take_the_bits_of_their_format(name: str, tmp_path: Path) -> None:
    prepared, _ = trained(f"{name}_weights")
    folder = qat.save_quantized(prepared, tmp_path)
    stored = next(folder.glob("*.safetensors")).stat().st_size
    layers = [m for m in prepared.modules() if isinstance(m, nn.Linear)]
    size, share = SCALES.get(name, (1, 32))
    expected = 0
    for layer in layers:
        out, width = layer.weight.shape
        expected += out * width * oracle.BITS[name] // 8 + 4 * out  # codes, bias
        expected += size * out * (1 if name == "fp8" else math.ceil(width / share))
    assert expected <= stored + 16 * len(layers)
    assert stored - expected < 2500  # the header, with names and shapes


@pytest.mark.parametrize("quantizer", ["LSQPlus", "Static"])
def test_int4_groups_with_zero_points_learn_and_reach_every_file(quantizer: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    network, x = nn.Sequential(nn.Linear(64, 24), nn.ReLU(), nn.Linear(24, 4)), torch.randn(8, 64)
    weight = {"bits": 4, "granularity": "per_group", "group_size": 8, "symmetric": False, "quantizer": quantizer}
    policy = qat.load_policy({"rules": {"all": {"match": "*", "weight": weight, "activation": None}}})
    prepared = qat.prepare(network, policy, x)
    qat.calibrate(prepared, [x])
    step(prepared.train(), x)
    integer = qat.convert(prepared.eval())
    assert prepared[0].weight_quantizer.zero_point.unique().numel() > 4
    assert torch.equal(integer(x), prepared(x))
    for saved, name in ((prepared, "prepared"), (integer, "integer")):
        assert torch.equal(qat.load_quantized(qat.save_quantized(saved, tmp_path / name))(x), prepared(x))
    qat.export_onnx(integer, x, tmp_path / "model.onnx")
    assert qat.verify(tmp_path / "model.onnx", integer, [x], prepared).passed
