"""Tables of layer times: what is in them, and that a budget reads what is written. Times themselves are the machine's."""

from __future__ import annotations

from operator import attrgetter
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qat.cli.main import main
from qat.nn import borrowing_layer, owning_layer
from qat.search import LatencyTable, allocate, measure_latency
from qat.transform import prepare


class Repeated(nn.Module):
    """A convolution that runs three times, a grouped one, and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.again = nn.Conv2d(2, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.grouped, self.head = nn.Conv2d(4, 4, 1, groups=2), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        for _ in range(3):
            x = F.relu(x + self.again(x))
        return self.head(self.grouped(x).mean((2, 3)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"activation_bits": 8}, r"activation_bits=8 is not possible: write widths"),
        ({"weight_bits": ()}, r"weight_bits=\[\] is not possible: write widths"),
        ({"rounds": 0}, "rounds=0 is not possible: write a whole number, 1 or more"),
        ({"threads": "two"}, "threads='two' is not possible"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, dict) else "",
)
def test_impossible_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        measure_latency(Repeated(), "w8a8", torch.rand(2, 2, 6, 6), **options)


def test_layers_of_a_prepared_network_have_no_times() -> None:
    x = torch.rand(2, 2, 6, 6)
    with pytest.raises(ValueError, match="prepared already: measure the layers of the float model"):
        measure_latency(prepare(Repeated(), "w8a8", x), "w8a8", x)


def test_every_layer_has_a_time_in_every_format_and_a_budget_takes_them(tmp_path: Path) -> None:
    model, x = Repeated().eval(), torch.rand(2, 2, 6, 6)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    table = measure_latency(model, "w4a8", x, weight_bits=(4, 8), rounds=2)
    assert list(table.times) == ["stem", "again", "grouped", "head"]
    assert {tuple(sorted(times)) for times in table.times.values()} == {("float", "w4a8", "w8a8")}
    assert all(time > 0 for times in table.times.values() for time in times.values())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    path = table.write(tmp_path / "times.yaml")
    assert LatencyTable.read(path).times["again"]["w8a8"] == pytest.approx(table.times["again"]["w8a8"], rel=1e-5)
    table = made_up(table)  # of measured ones, float may be the fastest
    found = allocate(model, "w4a8", [x], latency=6, latency_table=table, weight_bits=(4, 8), keep=[], points=0)
    assert found.record.costs[0].value <= 6


def made_up(table: LatencyTable) -> LatencyTable:
    """Other times of the same layers and formats, with which few bits are fast."""
    return LatencyTable({n: {k: 3.0 if k == "float" else int(k[1]) / 4 for k in t} for n, t in table.times.items()})


class Attention(nn.Module):
    """A layer that nn.MultiheadAttention computes itself, and a function with a weight."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.attention = nn.MultiheadAttention(6, 2, batch_first=True)
        self.kernel = nn.Parameter(torch.randn(6, 2, 3))

    def forward(self, x: Tensor) -> Tensor:
        x, _ = self.attention(x, x, x, need_weights=False)
        return F.conv1d(x.transpose(1, 2), self.kernel, stride=2, padding=1, groups=3)


@pytest.mark.slow
def test_layers_that_are_no_modules_of_the_model_have_times_and_a_budget_takes_them() -> None:
    model, x = Attention().eval(), torch.randn(2, 5, 6)
    table = measure_latency(model, "w8a8", x, weight_bits=(4, 8), rounds=1)
    assert list(table.times) == ["attention.in_proj", "attention.out_proj", "kernel_2"]
    allocate(model, "w8a8", [x], latency=5, latency_table=made_up(table), weight_bits=(4, 8), keep=[], points=0)


@pytest.mark.parametrize(
    "layer", [nn.Conv2d(4, 6, 3, 2, padding=1, groups=2), nn.Linear(4, 3), nn.Linear(4, 3, bias=False)]
)
def test_a_layer_without_parameters_is_copied_with_them(layer: nn.Module) -> None:
    borrowing = borrowing_layer(
        layer, layer, attrgetter("weight"), attrgetter("bias") if layer.bias is not None else None
    )
    found, x = owning_layer(borrowing), torch.randn(2, 4, 4, 4)
    assert torch.equal(found(x), layer(x))
    assert {name for name, _ in found.named_parameters()} == {name for name, _ in layer.named_parameters()}
    assert not {id(p) for p in found.parameters()} & {id(p) for p in layer.parameters()}


def test_the_command_writes_the_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "net.py").write_text("from torch import nn\ndef make():\n    return nn.Sequential(nn.Linear(6, 4))\n")
    output = tmp_path / "times.yaml"
    given = [f"{tmp_path}/net.py:make", "--input-shape", "6", "--weight-bits", "8", "--rounds", "1", "--threads", "1"]
    assert main(["latency", *given, "--output", str(output)]) == 0
    assert "layer, ms" in capsys.readouterr().out
    assert set(LatencyTable.read(output).times["0"]) == {"float", "w8a8"}
