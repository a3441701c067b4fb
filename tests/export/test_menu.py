"""Every quantizer of `configs/quantizer/` becomes integers: fake-quantized network, integer model and file agree."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import yaml
from networks import OptionA, build, images
from torch import nn

import qat
from qat import TensorRule
from qat.transform import quantizers

CONFIGS = Path(__file__).parents[2] / "configs" / "quantizer"
PARTS = {path.stem: yaml.safe_load(path.read_text()) for path in sorted(CONFIGS.glob("*.yaml"))}


def possible(bits: int, part: object, shape: tuple[int, ...]) -> bool:
    try:
        TensorRule(bits, quantizer=part, narrow=bool(shape), signed=bool(shape)).build(shape)
    except ValueError:
        return False
    return True


def policy_with(name: str) -> qat.Policy:
    """Of 4 or 2 bits; where the quantizer is for weights alone, activations have LSQ."""
    part = PARTS[name]
    bits = 4 if possible(4, part, (2, 2)) else 2
    activation = part if possible(4, part, ()) else "LSQ"
    options = {"quantizer": activation, "symmetric": name != "lsq_plus"}
    return qat.load_policy(
        {"preset": f"w{bits}a4", "weight": {"quantizer": part}, "activation": options, "first_last_bits": None}
    )


def trained(name: str) -> nn.Module:
    """Two steps of SGD, so that everything learned has left its first value and BatchNorm its statistics."""
    prepared = qat.prepare(build(OptionA), policy_with(name), images(2))
    qat.calibrate(prepared, [images(32)])
    optimizer = torch.optim.SGD(prepared.train().parameters(), lr=1e-3)
    for seed in (5, 6):
        optimizer.zero_grad()
        prepared(images(8, seed)).square().mean().backward()
        optimizer.step()
    return prepared.eval()


@pytest.mark.parametrize("name", [name for name in PARTS if name != "dynamic"])  # has a file of its own
def test_not_one_code_differs(name: str, tmp_path: Path) -> None:
    prepared = trained(name)
    integer = qat.convert(prepared)  # before any forward with the last weights
    path = tmp_path / "model.onnx"
    qat.export_onnx(integer, images(2), path)
    result = qat.verify(path, integer, [images(40, seed) for seed in (2, 3)])
    assert [site for site in result.sites if site.code_mismatches] == []
    assert result.exact
    assert result.operators["QLinearConv"] == 3
    with torch.no_grad():
        fake, real = prepared(images(40, 2)), integer(images(40, 2))
    # not equal: with a coarse weight scale the int32 bias is rounded to coarse units, 0.02 to 0.03 for Ternary and Binary
    assert (fake - real).abs().mean() < 0.05 * fake.std()
    used = {type(q).__name__ for q in quantizers(prepared).values()}
    assert PARTS[name]["_target_"].rpartition(".")[2] in used


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
