"""The Triton kernels against those in C, which numpy has checked: on a GPU, or without one in Triton's interpreter."""

from __future__ import annotations

import importlib.util
import random

import pytest
import torch
from torch import Tensor

from qat.estimators import EWGS
from qat.functional import clip_and_round, fake_quantize, look_up
from qat.kernels.cpu import functions as in_c
from qat.kernels.cpu import load_kernels
from qat.kernels.operators import Operators

pytestmark = [
    pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed"),
    pytest.mark.skipif(load_kernels() is None, reason="there is no C compiler, or QAT_NATIVE=0"),
    pytest.mark.filterwarnings(
        "ignore:invalid value encountered:RuntimeWarning"
    ),  # numpy in the interpreter, of inf - inf
]
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
LO, HI = -8.0, 7.0


@pytest.fixture(scope="module")
def functions() -> Operators:
    from qat.kernels.triton.functions import OPERATORS

    return OPERATORS


def tensors(shape: tuple[int, ...], per_row: bool, channels_last: bool = False) -> tuple[Tensor, Tensor, Tensor]:
    """(x, scale, grad); x has values on the bounds, beyond them, on rounding edges, NaN and infinities."""
    scale = 0.5 ** torch.arange(shape[0]).float().reshape(-1, *[1] * (len(shape) - 1)) if per_row else torch.tensor(0.3)
    x, grad = 4 * torch.randn(shape), torch.randn(shape)
    special = torch.tensor([LO, HI, 0.5, 1.5, 99.0, torch.inf, -torch.inf, torch.nan, -0.0, -0.3]) * scale.flatten()[0]
    x.view(-1)[: len(special)] = special[: x.numel()]
    if channels_last:
        x, grad = (t.to(memory_format=torch.channels_last) for t in (x, grad))
    return x, scale, grad


def agree(found: tuple[Tensor, ...], expected: tuple[Tensor, ...], exact: int) -> None:
    """The first `exact` tensors are equal bit for bit, the others within summation in float32; NaN equals NaN."""
    for i, (mine, theirs) in enumerate(zip(found, expected, strict=True)):
        tolerance = {"rtol": 0, "atol": 0} if i < exact else {"rtol": 1e-4, "atol": 1e-3}
        torch.testing.assert_close(mine.cpu(), theirs, equal_nan=True, **tolerance)
        if i < exact and theirs.is_floating_point():
            assert torch.equal(mine.cpu().signbit() & ~theirs.isnan(), theirs.signbit() & ~theirs.isnan())  # of zeros


def check_all(of_gpu: Operators, x: Tensor, scale: Tensor, grad: Tensor) -> None:
    on = [t.to(DEVICE) for t in (x, scale, grad)]
    bounds = (LO, HI)
    agree((of_gpu.fake_quantize(*on[:2], *bounds),), (in_c.fake_quantize(x, scale, *bounds),), 1)
    y, saved = in_c.fake_quantize_and_save(x, scale, *bounds)
    agree(of_gpu.fake_quantize_and_save(*on[:2], *bounds), (y, saved), 2)
    expected = in_c.fake_quantize_backward(grad, x, scale, *bounds)
    agree(of_gpu.fake_quantize_backward(on[2], *on[:2], *bounds), expected, 1)
    expected = in_c.fake_quantize_backward_from_saved(grad, saved, scale, *bounds)
    agree(of_gpu.fake_quantize_backward_from_saved(on[2], saved.to(DEVICE), on[1], *bounds), expected, 1)
    lo, hi = LO * scale, HI * scale
    y = in_c.clip_and_round(x, lo, hi, scale)
    agree((of_gpu.clip_and_round(on[0], lo.to(DEVICE), hi.to(DEVICE), on[1]),), (y,), 1)
    for slopes in (torch.ones(2, 1), torch.rand(2, 9)):
        expected = in_c.clip_and_round_backward(grad, x, y, lo, hi, scale, slopes)
        arguments = (on[2], on[0], *(t.to(DEVICE) for t in (y, lo, hi)), on[1], slopes.to(DEVICE))
        agree(of_gpu.clip_and_round_backward(*arguments), expected, 1 if slopes.shape[1] == 1 else 0)
    if scale.numel() == 1:
        table = torch.randn(16)
        y, codes = in_c.look_up(x, scale, *bounds, table)
        agree(of_gpu.look_up(on[0], on[1], *bounds, table.to(DEVICE)), (y, codes), 2)
        expected = in_c.look_up_backward(grad, codes, table)
        agree(of_gpu.look_up_backward(on[2], codes.to(DEVICE), table.to(DEVICE)), expected, 1)


@pytest.mark.parametrize(
    ("shape", "per_row", "channels_last"),
    [((5000,), False, False), ((3, 2100), True, False), ((2, 3, 4, 5), False, True), ((1,), False, False)],
)
def test_every_kernel_gives_the_bits_of_c(functions: Operators, shape, per_row: bool, channels_last: bool) -> None:
    check_all(functions, *tensors(shape, per_row, channels_last))


@pytest.mark.slow
def test_random_shapes(functions: Operators) -> None:
    numbers = random.Random(0)
    for _ in range(200):
        shape = tuple(numbers.randint(1, 13) for _ in range(numbers.choice([1, 2, 4])))
        check_all(functions, *tensors(shape, numbers.random() < 0.5, len(shape) == 4 and numbers.random() < 0.5))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_read_and_written_as_it_is(functions: Operators, dtype: torch.dtype) -> None:
    x, scale, grad = tensors((70,), False)
    x, grad = x.to(dtype), grad.to(dtype)
    y, saved = functions.fake_quantize_and_save(x.to(DEVICE), scale.to(DEVICE), LO, HI)
    expected, its_saved = in_c.fake_quantize_and_save(x, scale, LO, HI)
    agree((saved,), (its_saved,), 1)
    cut = (
        DEVICE == "cpu" and dtype is torch.bfloat16
    )  # the interpreter truncates where a GPU rounds: one step of bfloat16
    torch.testing.assert_close(y.cpu(), expected, rtol=2**-7 if cut else 0, atol=0, equal_nan=True)
    dx, dscale = functions.fake_quantize_backward_from_saved(grad.to(DEVICE), saved, scale.to(DEVICE), LO, HI)
    assert y.dtype is dx.dtype is dtype
    assert dscale.dtype is torch.float32


def test_training_through_them_gives_the_gradients_of_torch(functions: Operators, monkeypatch) -> None:
    """Through the autograd functions, which choose the backend; torch's own operations are the reference."""

    def gradients() -> list[Tensor]:
        x, scale, _grad = (t.to(DEVICE) for t in tensors((4, 40), False))
        x = x.nan_to_num(0.0, 3.0, -3.0).requires_grad_()
        scale.requires_grad_()
        lo, hi = (LO * scale).detach().requires_grad_(), (HI * scale).detach().requires_grad_()
        table = torch.linspace(-1, 1, 16, device=DEVICE).requires_grad_()
        weights = torch.arange(160.0, device=DEVICE).reshape(4, 40)
        total = (fake_quantize(x * 1, scale, 0, -8, 7) * weights).sum()
        total = total + (clip_and_round(x, lo, hi, scale, EWGS(0.2)) * weights).sum()
        total = total + (look_up(x, scale.detach(), -8, 7, table, torch.ones(16, device=DEVICE)) * weights).sum()
        return list(torch.autograd.grad(total, (x, scale, lo, hi, table)))

    torch.manual_seed(0)
    if DEVICE == "cpu":
        monkeypatch.setattr("qat.kernels.cpu.operators", lambda: functions)
    found = gradients()
    torch.manual_seed(0)
    monkeypatch.setattr(f"qat.kernels.{'triton' if DEVICE == 'cuda' else 'cpu'}.available", lambda: False)
    for mine, of_torch in zip(found, gradients(), strict=True):
        torch.testing.assert_close(mine, of_torch, rtol=2e-3, atol=2.0)
