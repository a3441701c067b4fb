"""Functions that torch.onnx cannot write, by their equivalents."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import qat
from qat.export.onnx.equivalents import EQUIVALENTS
from qat.export.onnx.runtime import session

X = torch.randn(3, 7, 5, generator=torch.Generator().manual_seed(0))
CALLS: dict[str, tuple[Any, tuple[Any, ...]]] = {
    **{f"cumprod {dim}": (Tensor.cumprod, (X, dim)) for dim in (0, 1, -1)},
    **{f"cdist {p}": (torch.cdist, (X, X[:, :4] + 1, p)) for p in (1.0, 2.0, float("inf"))},
    **{f"fill_diagonal {size}": (Tensor.fill_diagonal_, (X[0, :, :size], 2.0)) for size in (3, 5)},
    "fill_diagonal of columns": (Tensor.fill_diagonal_, (X[0, :3], 2.0)),
}


@pytest.mark.parametrize("name", CALLS)
def test_an_equivalent_computes_the_same(name: str) -> None:
    function, arguments = CALLS[name]
    found = EQUIVALENTS[function](*arguments)
    torch.testing.assert_close(found, function(arguments[0].clone(), *arguments[1:]))


class Equivalents(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 8), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        x = x.sigmoid().cumprod(-1) + x * x.median(-1, keepdim=True).values
        return self.b(
            (x @ x.t()).fill_diagonal_(0.0).sum(-1, keepdim=True) + torch.cdist(x, x).mean(-1, keepdim=True) + x
        )


@pytest.mark.slow
def test_they_end_in_a_right_file(tmp_path: Path) -> None:
    x, other = torch.randn(5, 6), torch.randn(9, 6)
    prepared = qat.prepare(Equivalents(), "w8a8", x)
    qat.calibrate(prepared, [x, other])
    integer = qat.convert(prepared.eval())
    qat.export_onnx(integer, x, tmp_path / "model.onnx")
    assert qat.verify(tmp_path / "model.onnx", integer, [x], prepared).passed
    (found,) = session((tmp_path / "model.onnx").read_bytes()).run(None, {"x": other.numpy()})
    expected = prepared(other).detach()
    torch.testing.assert_close(torch.from_numpy(found), expected, atol=0.02 * expected.abs().max().item(), rtol=0.0)
