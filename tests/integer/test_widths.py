"""Whatever the width of a network, of its inputs or of what is around it: the artefact computes in float32."""

from __future__ import annotations

import copy
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


@pytest.mark.parametrize("policy", ["w8a8", "w8_dynamic", "w8_dynamic_per_token", "w4", "mxfp8", "nvfp4"])
def test_neither_casts_nor_autocast_change_an_integer_model(policy: str) -> None:
    torch.manual_seed(0)
    network, x = nn.Sequential(nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 4)), torch.randn(8, 32)
    prepared = qat.prepare(network.eval(), policy, x)
    qat.calibrate(prepared, [x])
    integer = qat.convert(prepared)
    expected = integer(x)
    for dtype in (torch.float16, torch.bfloat16, torch.float64):
        assert torch.equal(copy.deepcopy(integer).to(dtype)(x), expected)
        assert torch.equal(nn.Sequential(copy.deepcopy(integer)).to(dtype)(x), expected)
    with torch.autocast("cpu"):
        assert torch.equal(integer(x), expected)
        assert torch.equal(integer.codes(x)[0], expected)


class Unread(nn.Module):
    """No graph follows it."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(32, 4, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.linear(x) if float(x.sum()) == float(x.sum()) else x
        return result


def test_casts_do_not_change_stored_weights_without_a_graph() -> None:
    torch.manual_seed(0)
    prepared = qat.prepare(Unread(), "w4")
    qat.calibrate(prepared, [x := torch.randn(8, 32)])
    integer = qat.convert(prepared)
    assert torch.equal(copy.deepcopy(integer).half()(x), integer(x))


@pytest.mark.parametrize("policy", ["w8a8", "w8_dynamic", "w8_dynamic_per_token"])
def test_an_empty_batch_gives_an_empty_result(policy: str) -> None:
    network, x = nn.Sequential(nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 4)), torch.randn(8, 32)
    prepared = qat.prepare(network.eval(), policy, x)
    qat.calibrate(prepared, [x])
    assert qat.convert(prepared)(x[:0]).shape == prepared(x[:0]).shape == (0, 4)
