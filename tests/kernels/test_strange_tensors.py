"""Fake quantization of tensors in every memory order and at the ends of float32, compiled and composed, against numpy."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from qat.functional import fake_quantize

TENSORS: dict[str, Callable[[], Tensor]] = {
    "not contiguous": lambda: 4 * torch.randn(6, 10)[:, ::2],
    "transposed": lambda: 4 * torch.randn(5, 7).t(),
    "expanded": lambda: (4 * torch.randn(4, 1)).expand(4, 9),
    "stride 0": lambda: torch.tensor([3.3]).expand(50),
    "overlapping": lambda: torch.as_strided(4 * torch.randn(30), (3, 5), (2, 5)),
    "0-d": lambda: torch.tensor(2.7),
    "empty": lambda: torch.randn(0, 3),
    "channels-last": lambda: (4 * torch.randn(2, 3, 4, 4)).to(memory_format=torch.channels_last),
    "channels-last 3-D": lambda: (4 * torch.randn(2, 3, 2, 2, 3)).to(memory_format=torch.channels_last_3d),
    "axes of one": lambda: (4 * torch.randn(3, 1, 4, 1)).to(memory_format=torch.channels_last),
    "zeros": lambda: torch.tensor([-0.0, 0.0, -0.1, 0.1, -1e-40, 1e-40, -1e-45]),
    "denormal": lambda: 1e-39 * torch.randn(40),
    "huge": lambda: 1e38 * torch.randn(40),
    "no numbers": lambda: torch.tensor([torch.nan, torch.inf, -torch.inf, 1.0, -1.0]),
}
SCALES = {
    "(): 0.3": torch.tensor(0.3),
    "(1,): 0.3": torch.tensor([0.3]),
    "1e36": torch.tensor(1e36),
    "1e-40": torch.tensor(1e-40),
}
GRIDS = [(0, -8, 7), (3, 0, 255)]
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def in_numpy(x: Tensor, scale: Tensor, lo: int, hi: int) -> tuple[NDArray[np.float32], ...]:
    """y, whether x lies inside, and the factor of the gradient in dscale."""
    values, s = x.float().numpy(), scale.numpy()
    with np.errstate(all="ignore"):
        v = values / s
        y = np.rint(np.clip(v, np.float32(lo), np.float32(hi))).astype(np.float32) * s
        lowest, highest = np.float32(lo) * s, np.float32(hi) * s
        factor = np.where(values >= highest, np.float32(hi), np.where(values <= lowest, np.float32(lo), np.rint(v) - v))
        return y, (values > lowest) & (values < highest), factor


def same(a: Tensor, b: Tensor) -> bool:
    """Equal bit for bit, but for the bits of NaN."""
    numbers = ~b.isnan()
    return (
        a.shape == b.shape
        and a.dtype == b.dtype
        and torch.equal(a.isnan(), ~numbers)
        and torch.equal(a[numbers], b[numbers])
        and torch.equal(a[numbers].signbit(), b[numbers].signbit())
    )


@pytest.mark.parametrize("compiled", [True, False], ids=["compiled", "composed"])
@pytest.mark.parametrize("name", TENSORS)
def test_fake_quantization_is_the_formula(name: str, compiled: bool, monkeypatch) -> None:
    if not compiled:
        monkeypatch.setattr("qat.kernels.cpu.available", lambda: False)
    for case, (scale, (zero_point, qmin, qmax), dtype) in enumerate(itertools.product(SCALES.values(), GRIDS, DTYPES)):
        is_leaf = (case + case // len(DTYPES)) % 2 == 0
        x = TENSORS[name]().to(dtype).requires_grad_()
        grad, learned = torch.randn(x.shape).to(dtype), scale.clone().requires_grad_()
        y = fake_quantize(x if is_leaf else x * 1, learned, zero_point, qmin, qmax)
        dx, dscale = torch.autograd.grad(y, (x, learned), grad)
        expected, inside, factor = in_numpy(x.detach(), scale.reshape(()), qmin - zero_point, qmax - zero_point)
        about = (scale.item(), zero_point, dtype, is_leaf)
        assert same(y.detach(), torch.tensor(expected).to(dtype)), about
        assert same(dx, torch.where(torch.tensor(inside), grad, 0)), about
        terms = grad.double() * torch.tensor(factor).double()
        total, error = terms.sum(), 1e-3 * terms.abs().sum() + grad.double().abs().sum() / 500 + 1e-6
        assert dscale.shape == scale.shape
        assert torch.equal(dscale.isnan().squeeze(), total.isnan()), about
        assert bool(total.isnan()) or abs(dscale.item() - total.item()) <= error, about


@pytest.mark.parametrize("compiled", [True, False], ids=["compiled", "composed"])
def test_one_scale_for_each_index_of_the_second_of_five_axes(compiled: bool, monkeypatch) -> None:
    if not compiled:
        monkeypatch.setattr("qat.kernels.cpu.available", lambda: False)
    x, scale, grad = 3 * torch.randn(2, 5, 3, 2, 2), torch.rand(1, 5, 1, 1, 1) + 0.1, torch.randn(2, 5, 3, 2, 2)
    x.requires_grad_()
    learned = scale.clone().requires_grad_()
    y = fake_quantize(x * 1, learned, 0, -8, 7)
    dx, dscale = torch.autograd.grad(y, (x, learned), grad)
    expected, inside, factor = in_numpy(x.detach(), scale, -8, 7)
    assert same(y.detach(), torch.tensor(expected))
    assert same(dx, torch.where(torch.tensor(inside), grad, 0))
    torch.testing.assert_close(dscale, (grad * torch.tensor(factor)).sum_to_size(scale.shape), rtol=1e-4, atol=1e-4)
