"""For every quantizer in `configs/quantizer/`, the fake-quantized network, the integer model and the file agree."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import yaml
from torch import nn

import qat
from qat import TensorRule
from qat.integer.modules import LookUp
from qat.transform import quantizers
from tests.networks import OptionA, build, images
from tests.paths import CONFIGS

CONFIGS = CONFIGS / "quantizer"
PARTS = {path.stem: yaml.safe_load(path.read_text()) for path in sorted(CONFIGS.glob("*.yaml"))}


FORMATS = ("fp8", "mx", "nvfp4")
BY_TABLE = ("apot", "lcq", "n2uq", "qil")
"""Quantizers whose activations are looked up; the others are for weights only, or uniform."""


def possible(bits: int, part: object, shape: tuple[int, ...]) -> bool:
    try:
        TensorRule(bits, quantizer=part, narrow=bool(shape), signed=bool(shape)).build(shape)
    except ValueError:
        return False
    return True


def policy_with(name: str) -> qat.Policy:
    """A policy of 4 or, if the quantizer cannot, 2 bits; activations have LSQ if the quantizer is for weights only."""
    part = PARTS[name]
    bits = 4 if possible(4, part, (2, 2)) else 2
    activation = part if possible(4, part, ()) else "LSQ"
    options = {"quantizer": activation, "symmetric": name != "lsq_plus"}
    return qat.load_policy(
        {"preset": f"w{bits}a4", "weight": {"quantizer": part}, "activation": options, "first_last_bits": None}
    )


def trained(name: str) -> nn.Module:
    """A network after two steps of SGD, which change everything learned and the statistics of BatchNorm."""
    prepared = qat.prepare(build(OptionA), policy_with(name), images(2))
    qat.calibrate(prepared, [images(32)])
    optimizer = torch.optim.SGD(prepared.train().parameters(), lr=1e-3)
    for seed in (5, 6):
        optimizer.zero_grad()
        prepared(images(8, seed)).square().mean().backward()
        optimizer.step()
    return prepared.eval()


@pytest.mark.parametrize(
    "name", [name for name in PARTS if not name.startswith(("dynamic", *FORMATS))]
)  # have files of their own
def test_not_one_code_differs(name: str, tmp_path: Path) -> None:
    prepared = trained(name)
    integer = qat.convert(prepared)  # before any forward with the last weights
    path = tmp_path / "model.onnx"
    qat.export_onnx(integer, images(2), path)
    result = qat.verify(path, integer, [images(40, seed) for seed in (2, 3)])
    assert [site for site in result.sites if site.code_mismatches] == []
    assert result.exact
    assert result.operators["QLinearConv"] == 3
    looked_up = any(isinstance(module, LookUp) for module in integer.modules())
    assert looked_up == ("Gather" in result.operators) == (name in BY_TABLE)
    with torch.no_grad():
        fake, real = prepared(images(40, 2)), integer(images(40, 2))
    # not equal: with a coarse weight scale the int32 bias is rounded to coarse units, 0.02 to 0.03 for Ternary and Binary
    assert (fake - real).abs().mean() < 0.05 * fake.std()
    used = {type(q).__name__ for q in quantizers(prepared).values()}
    assert PARTS[name]["_target_"].rpartition(".")[2] in used


@pytest.mark.parametrize("name", BY_TABLE)
def test_codes_that_are_looked_up_are_those_of_the_quantizer(name: str) -> None:
    """Checked on the input, which has both signs and needs no arithmetic but the first rounding."""
    prepared = trained(name)
    with torch.no_grad():
        prepared.sites.x_input.center.mul_(1.2) if name == "qil" else None
    x = 2 * images(40, 3)
    _, codes = qat.convert(prepared).codes(x)
    quantizer, table = prepared.sites.x_input, prepared.sites.x_input.lookup_table()
    shift = 2 ** (quantizer.spec.grid.bits - 1)
    assert torch.equal(codes["x_input"].float() - shift, quantizer.quantize(x))
    fine = qat.functional.quantize(x, table.qparams.scale, 0, -127, 127)
    assert torch.equal(codes["x_input_fine"].float() - 128, fine)
    assert len(codes["x_input"].unique()) <= 16 < len(codes["x_input_fine"].unique())


def test_behind_relu6_and_an_average_the_table_sees_what_the_quantizer_sees(tmp_path: Path) -> None:
    layers = [
        nn.Conv2d(3, 8, 3),
        nn.ReLU6(),
        nn.Conv2d(8, 4, 1),
        nn.ReLU6(),
        nn.AvgPool2d(2),
        nn.Flatten(),
        nn.Linear(36, 5),
    ]
    policy = qat.load_policy(
        {"preset": "w4a3", "activation": {"quantizer": "LCQ", "observer": "MinMax"}, "first_last_bits": None}
    )
    prepared = qat.prepare(nn.Sequential(*layers).eval(), policy, torch.randn(2, 3, 8, 8))
    x = 20 * torch.randn(16, 3, 8, 8)
    qat.calibrate(prepared, [x])
    found = {name: type(q).__name__ for name, q in quantizers(prepared).items() if name.startswith("sites")}
    assert found["sites.0"] == "LCQ"
    assert set(found.values()) == {"LCQ", "LSQ"}  # what is averaged stays uniform
    with torch.no_grad():
        prepared.sites["0"].scale.mul_(1.5)  # a range beyond 6
    integer, path = qat.convert(prepared), tmp_path / "model.onnx"
    qat.export_onnx(integer, torch.randn(2, 3, 8, 8), path)
    assert qat.verify(path, integer, [x]).exact
    _, codes = integer.codes(x)
    assert int(codes["0_fine"].max()) == 170  # 6 / 9 of 255


def test_a_layer_without_a_graph_keeps_codes_of_its_last_weight() -> None:
    class Branching(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(8, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.linear(x) if x.sum() > -1e9 else x

    rule = {"match": "*", "weight": {"bits": 2, "quantizer": "Ternary"}, "activation": None}
    prepared = qat.prepare(Branching(), qat.load_policy({"rules": {"all": rule}}))
    qat.calibrate(prepared, [torch.randn(4, 8)])
    with torch.no_grad():
        prepared.linear.weight.mul_(3.0)  # no forward since
    x = torch.randn(5, 8)
    integer = qat.convert(prepared)
    torch.testing.assert_close(integer(x), prepared(x))
