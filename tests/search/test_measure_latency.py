"""Tables of layer times: what is in them, and that a budget reads what is written. Times themselves are the machine's."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qat.cli.main import main
from qat.search import LatencyTable, allocate, measure_latency


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
    dearest = sum(max(times.values()) for times in table.times.values())
    lowest = sum(min(times["w4a8"], times["w8a8"]) for times in table.times.values())
    limit = max(lowest, min(dearest, sum(times["float"] for times in table.times.values()))) * (1 + 1e-9)
    found = allocate(model, "w4a8", [x], latency=limit, latency_table=table, weight_bits=(4, 8), keep=[], points=0)
    assert found.record.costs[0].value <= limit


def test_a_layer_that_no_module_calls_is_named() -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval()
    with pytest.raises(ValueError, match=r"the time of layer 0.self_attn\S* cannot be measured"):
        measure_latency(nn.Sequential(layer), "w8a8", torch.rand(1, 3, 8), weight_bits=(8,), rounds=1)


def test_the_command_writes_the_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "net.py").write_text("from torch import nn\ndef make():\n    return nn.Sequential(nn.Linear(6, 4))\n")
    output = tmp_path / "times.yaml"
    given = [f"{tmp_path}/net.py:make", "--input-shape", "6", "--weight-bits", "8", "--rounds", "1", "--threads", "1"]
    assert main(["latency", *given, "--output", str(output)]) == 0
    assert "layer, ms" in capsys.readouterr().out
    assert set(LatencyTable.read(output).times["0"]) == {"float", "w8a8"}
