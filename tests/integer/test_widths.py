"""A network whose parameters are of another width, and whose forward casts to it: the artefact computes in float32."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import onnxruntime
import pytest
import torch
from torch import Tensor, nn

import qat

CASTS: dict[str, tuple[torch.dtype, Callable[[Tensor], Tensor]]] = {
    "double": (torch.float64, lambda x: x.double()),
    "to double": (torch.float64, lambda x: x.to(torch.float64)),
    "type": (torch.float64, lambda x: x.type(torch.float64)),
    "sum": (torch.float64, lambda x: x.cumsum(1, dtype=torch.float64)),
    "half": (torch.float16, lambda x: x.half()),
    "bfloat16": (torch.bfloat16, lambda x: x.to(dtype=torch.bfloat16)),
}


class Casting(nn.Module):
    def __init__(self, dtype: torch.dtype, cast: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.cast, self.layers = cast, nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)).to(dtype)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.layers(self.cast(x))
        return y


@pytest.mark.parametrize(
    "name", [name if name in ("double", "sum") else pytest.param(name, marks=pytest.mark.slow) for name in CASTS]
)
def test_its_file_takes_and_computes_float32(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    x, other = torch.randn(16, 4), torch.randn(5, 4)
    network = Casting(*CASTS[name]).eval()
    prepared = qat.prepare(network, "w8a8", x)
    qat.calibrate(prepared, [x])
    integer = qat.convert(prepared)
    assert integer(x).dtype is torch.float32
    qat.export_onnx(integer, x, tmp_path / "model.onnx")
    assert qat.verify(tmp_path / "model.onnx", integer, [x, other], prepared).passed
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    found = torch.from_numpy(session.run(None, {"x": other.numpy()})[0])
    torch.testing.assert_close(found, network(other).detach().float(), atol=0.03, rtol=0.03)
