"""Networks in half and double precision, from prepare to the integer model."""

import pytest
import torch
from torch import nn

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
