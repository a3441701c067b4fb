"""The doctor finds what was planted, and its numbers are those of numpy."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import qat
from qat.doctor import Diagnosis


class Planted(nn.Module):
    """A depthwise convolution of unequal channels, a layer without a rule, and a ReLU."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.forgotten = nn.Conv2d(8, 8, 1)
        self.last = nn.Linear(8, 4)
        with torch.no_grad():
            self.depthwise.weight[0] *= 500

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.first(x))
        x = F.relu(self.depthwise(x))
        return self.last(F.relu(self.forgotten(x)).mean((2, 3)))


@pytest.fixture(scope="module")
def batches() -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    return [(torch.rand(8, 3, 6, 6, generator=generator), torch.arange(8) % 4) for _ in range(2)]


@pytest.fixture(scope="module")
def found(batches: list[tuple[Tensor, Tensor]]) -> Diagnosis:
    policy = {
        "preset": "w4a8",
        "weight": {"observer": "MinMax"},
        "rules": {
            "depthwise": {
                "match": "depthwise",
                "weight": {"bits": 4, "granularity": "per_tensor"},
                "activation": {"bits": 8, "signed": True},
            },
            "forgotten": {"match": "forgotten", "weight": None, "activation": None},
        },
    }
    return qat.inspect(Planted(), policy, batches)


def test_planted_faults_are_found_with_a_line_that_mends_them(found: Diagnosis) -> None:
    kinds = {(f.kind, f.where) for f in found.findings}
    assert ("depthwise_per_tensor", "depthwise") in kinds
    assert ("no_rule", "forgotten") in kinds
    assert any(kind == "wrong_sign" for kind, _ in kinds)
    assert any(kind == "saturation" for kind, _ in kinds)
    assert all(f.config for f in found.findings)
    mended = {f.kind: f.config for f in found.findings}
    assert mended["depthwise_per_tensor"] == "weight: {granularity: per_channel}"
    assert mended["wrong_sign"] == "rules.depthwise.activation.signed: null"


def test_a_line_of_a_rule_can_be_used_as_it_is(found: Diagnosis, batches: list[tuple[Tensor, Tensor]]) -> None:
    import yaml

    line = next(f.config for f in found.findings if f.kind == "no_rule")
    policy = qat.load_policy({"preset": "w4a8", **yaml.safe_load(line)})
    again = qat.inspect(Planted(), policy, batches[:1])
    assert not any(f.kind == "no_rule" for f in again.findings)


@pytest.mark.parametrize("preset", ["w8a8", "w4a8"])
def test_the_line_against_saturation_mends_it(preset: str, batches: list[tuple[Tensor, Tensor]]) -> None:
    import yaml

    found = qat.inspect(Planted(), preset, batches[:1])
    line = next(f.config for f in found.findings if f.kind == "saturation")
    again = qat.inspect(Planted(), {"preset": preset, **yaml.safe_load(line)}, batches[:1])
    assert not any(f.kind == "saturation" for f in again.findings)


def test_signs_that_the_target_needs_are_no_finding(batches: list[tuple[Tensor, Tensor]]) -> None:
    found = qat.inspect(Planted(), {"preset": "w8a8", "target": "tensorrt"}, batches[:1])
    assert not any(finding.kind == "wrong_sign" for finding in found.findings)


def test_layers_that_return_float_convert_nothing(batches: list[tuple[Tensor, Tensor]]) -> None:
    found = qat.inspect(Planted(), "w8_dynamic", batches)
    assert found.inspection.float_edges
    assert not any("converted there and back" in finding.text for finding in found.findings)


def test_sensitivity_of_one_weight_is_that_of_numpy(found: Diagnosis, batches: list[tuple[Tensor, Tensor]]) -> None:
    network = Planted().eval()
    weight = network.last.weight.detach().numpy()
    scale = np.abs(weight).max(1, keepdims=True) / 127  # the last layer stays at 8 bits, symmetric and narrow
    rounded = np.clip(np.round(weight / scale), -127, 127) * scale
    with torch.no_grad():
        x = torch.cat([x for x, _ in batches])
        labels = torch.cat([y for _, y in batches])
        expected = network(x)
        network.last.weight.copy_(torch.from_numpy(rounded.astype(np.float32)))
        output = network(x)
    decibels = 10 * np.log10(float((expected**2).sum()) / float(((expected - output) ** 2).sum()))
    change = float(F.cross_entropy(output, labels) - F.cross_entropy(expected, labels))
    measured = next(s for s in found.sensitivity if (s.name, s.tensor) == ("last", "weight"))
    assert measured.sqnr_db == pytest.approx(decibels, abs=0.2)
    assert measured.loss_change == pytest.approx(change, abs=2e-4)


def test_together_is_worse_than_alone(found: Diagnosis) -> None:
    together = {s.tensor: s.sqnr_db for s in found.sensitivity if not s.name}
    assert together.keys() == {"all", "weights", "activations"}
    alone = [s for s in found.sensitivity if s.name]
    assert [s.sqnr_db for s in alone] == sorted(s.sqnr_db for s in alone)
    assert together["weights"] <= min(s.sqnr_db for s in alone if s.tensor == "weight") + 3


def test_json_picture_and_text(found: Diagnosis, tmp_path: Path) -> None:
    assert json.loads(json.dumps(found.to_dict(), allow_nan=False))["policy"] == "custom" or found.policy
    assert found.plot(tmp_path / "s.png").read_bytes().startswith(b"\x89PNG")
    assert "findings for" in str(found)


class Classes(Planted):
    """Returns the classes alone."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).argmax(1)


def test_outputs_without_floats_are_not_called_unharmed(batches: list[tuple[Tensor, Tensor]]) -> None:
    with pytest.raises(ValueError, match=r"the outputs of Classes hold no floats.* or pass loss=\.\.\."):
        qat.inspect(Classes(), "w4a8", batches)
    found = qat.inspect(Classes(), "w4a8", batches, loss=lambda outputs, batch: (outputs != batch[1]).float().mean())
    assert {s.loss_change for s in found.sensitivity} != {0.0}


def test_nothing_is_changed_and_misuse_is_said(batches: list[tuple[Tensor, Tensor]]) -> None:
    network = Planted()
    before = {name: p.clone() for name, p in network.state_dict().items()}
    qat.inspect(network, "w8a8", batches[:1])
    assert all(torch.equal(p, network.state_dict()[name]) for name, p in before.items())
    with pytest.raises(ValueError, match="no data"):
        qat.inspect(network, "w8a8")  # type: ignore[call-overload]
    with pytest.raises(ValueError, match="batches is empty"):
        qat.inspect(network, "w8a8", [])
    with pytest.raises(ValueError, match="prepared already"):
        qat.inspect(qat.prepare(network, "w8a8"), "w8a8", batches)
    assert qat.inspect(qat.prepare(network, "w8a8")).lines
