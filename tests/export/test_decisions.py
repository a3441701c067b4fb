"""What a network decides, by the shape and the kind of its output."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import qat
from qat.export.decisions import decisions

DECISIONS = {
    "classes": (torch.tensor([[0.0, 2.0], [3.0, 1.0]]), torch.tensor([1, 0])),
    "one logit": (torch.tensor([[0.5], [-0.5]]), torch.tensor([[True], [False]])),
    "one number a sample": (torch.tensor([0.5, -0.5]), torch.tensor([True, False])),
    "one number": (torch.tensor(-1.0), torch.tensor(False)),
    "tokens (N, T, V)": (torch.tensor([[[0.0, 2.0], [3.0, 1.0], [0.0, 1.0]]]), torch.tensor([[1, 0, 1]])),
    "maps (N, C, H, W)": (torch.tensor([[[[0.0, 2.0]], [[3.0, 1.0]]]]), torch.tensor([[[1, 0]]])),
    "maps of one logit": (torch.tensor([[[[0.5, -2.0]]]]), torch.tensor([[[[True, False]]]])),
    "truth values": (torch.tensor([[True, False]]), torch.tensor([[True, False]])),
    "complex numbers": (torch.tensor([[1j, -3.0 + 0j]]), torch.tensor([1])),
    "no classes": (torch.zeros(2, 0), torch.zeros(2, 0, dtype=torch.bool)),
}


@pytest.mark.parametrize(("output", "wanted"), DECISIONS.values(), ids=DECISIONS)
def test_decides_along_the_axis_of_classes(output: Tensor, wanted: Tensor) -> None:
    assert torch.equal(decisions(output), wanted)


def test_a_network_that_returns_truth_values_is_verified(tmp_path: Path) -> None:
    class Positive(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.linear(x) > 0

    torch.manual_seed(0)
    x = torch.randn(16, 4)
    prepared = qat.prepare(Positive(), "w8a8", x)
    qat.calibrate(prepared, [x])
    integer = qat.convert(prepared)
    qat.export_onnx(integer, x, tmp_path / "model.onnx")
    found = qat.verify(tmp_path / "model.onnx", integer, [x], prepared)
    assert found.passed
    assert found.top1_agreement == 1
