"""Networks in half and double precision, from prepare to the integer model."""

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import qat


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16], ids=str)
def test_a_network_of_any_precision_becomes_a_float32_artefact(dtype: torch.dtype) -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3), nn.LayerNorm(3)).to(dtype)
    x = torch.randn(16, 4, dtype=dtype)
    prepared = qat.prepare(model, "w8a8", x)
    qat.calibrate(prepared, [x])
    optimizer = torch.optim.SGD(prepared.parameters(), 1e-3)
    y = prepared(x)
    assert y.dtype is dtype
    y.square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in prepared.parameters())
    optimizer.step()
    scales = [q.qparams().scale for q in qat.transform.quantizers(prepared).values()]
    assert all(scale.dtype is torch.float32 for scale in scales)
    integer = qat.convert(prepared)
    out = integer(x.float())
    assert out.dtype is torch.float32
    assert {b.dtype for b in integer.buffers()} <= {torch.int8, torch.uint8, torch.int32, torch.float32}
    torch.testing.assert_close(out, prepared.eval()(x).float(), atol=0.1, rtol=0.05)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert prepared.float()(x.float()).isfinite().all()


class Around(nn.Module):
    """An operation in float before the first layer."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.first, self.last = nn.LayerNorm(6), nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.first(self.norm(x)).tanh())


@pytest.mark.parametrize("policy", ["w4", "nvfp4", "fp8_weights"])
@pytest.mark.parametrize(
    "dtype", [torch.float64, torch.float16, pytest.param(torch.bfloat16, marks=pytest.mark.slow)], ids=str
)
def test_weights_alone_in_codes_take_inputs_of_any_precision(dtype: torch.dtype, policy: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, x = Around().to(dtype), torch.randn(16, 6, dtype=dtype)
    prepared = qat.prepare(model, policy, x)
    qat.calibrate(prepared, [x])
    integer = qat.convert(prepared)
    for network in (integer, copy.deepcopy(integer), qat.load_quantized(qat.save_quantized(integer, tmp_path))):
        assert torch.equal(network(x), integer(x.float()))
    torch.testing.assert_close(integer(x), prepared.eval()(x).float(), atol=0.1, rtol=0.05)
    if policy != "nvfp4":
        qat.export_onnx(integer, x, tmp_path / "model.onnx")
        assert qat.verify(tmp_path / "model.onnx", integer, [x], prepared).passed
