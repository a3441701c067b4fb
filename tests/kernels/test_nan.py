"""NaN, infinity and huge values: the same with and without a compiler, and no undefined conversion in C."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from qat.estimators import DSQ, EWGS, StraightThrough
from qat.functional import clip_and_round, fake_quantize, look_up
from qat.kernels import saving_as_codes
from qat.kernels.cpu import load_kernels
from tests.paths import ROOT

native = pytest.mark.skipif(load_kernels() is None, reason="there is no C compiler, or QAT_NATIVE=0")

STRANGE = torch.tensor([torch.nan, torch.inf, -torch.inf, 3e38, -3e38, 1e-45, 0.0, 0.3, -0.3, 9.0, torch.nan])


def of_leaf(x: Tensor, scale: Tensor) -> Tensor:
    return fake_quantize(x, scale, 0, -7, 7)


def of_activation(x: Tensor, scale: Tensor) -> Tensor:
    return fake_quantize(x * 1, scale, 0, -7, 7)


def of_learned_bounds(rounding: object) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda x, scale: clip_and_round(x, -7 * scale.detach(), 7 * scale, scale, rounding)


def of_table(x: Tensor, scale: Tensor) -> Tensor:
    return look_up(x, scale.reshape(-1)[:1].detach(), -7, 7, torch.linspace(-1, 1, 15), torch.ones(15)) * scale.sum()


FUNCTIONS = {
    "leaf": of_leaf,
    "activation": of_activation,
    "straight_through": of_learned_bounds(StraightThrough()),
    "ewgs": of_learned_bounds(EWGS(0.5)),
    "dsq": of_learned_bounds(DSQ(0.1)),
    "table": of_table,
}


def results(function: Callable[[Tensor, Tensor], Tensor], x: Tensor, grad: Tensor, rows: bool) -> list[Tensor]:
    """y, dx and dscale, of first and of second order."""
    scale = torch.full((len(x), 1), 0.1) if rows else torch.tensor(0.1)
    found = []
    for twice in (False, True):
        leaf, s = x.clone().requires_grad_(), scale.clone().requires_grad_()
        y = function(leaf, s)
        found += [y.detach(), *(g.detach() for g in torch.autograd.grad(y, (leaf, s), grad, create_graph=twice))]
    return found


@native
@pytest.mark.parametrize("name", FUNCTIONS)
def test_strange_numbers_give_the_same_with_and_without_a_compiler(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    cases = []
    for strange in (STRANGE, STRANGE[~STRANGE.isnan()], torch.tensor([0.3, torch.nan])):
        x = torch.cat([strange, torch.zeros(37 - len(strange))]).repeat(2, 1)
        x[1] = 0.1
        grad = torch.linspace(-1, 1, x.numel()).reshape(x.shape)
        of_nan = torch.where(torch.arange(37) == 20, torch.nan, grad)
        cases += [(x, g, rows) for g in (grad, of_nan) for rows in (False, True)]
    compiled = [results(FUNCTIONS[name], *case) for case in cases]
    monkeypatch.setattr("qat.kernels.cpu.available", lambda: False)
    for case, mine in zip(cases, compiled, strict=True):
        for found, expected in zip(mine, results(FUNCTIONS[name], *case), strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-3, atol=0.1, equal_nan=True)


@native
@pytest.mark.parametrize("name", ["leaf", "activation", "straight_through", "dsq"])
def test_the_gradient_of_nan_is_zero_and_that_of_its_scale_is_nan(name: str) -> None:
    x = torch.tensor([[0.3, torch.nan, 0.2], [0.1, 0.2, 0.3]])
    for dx, dscale in (results(FUNCTIONS[name], x, torch.ones(2, 3), True)[i : i + 2] for i in (1, 4)):
        assert (dx == 0).nonzero().tolist() == [[0, 1]]
        assert dscale.isnan().flatten().tolist() == [True, False]


@native
def test_a_layer_whose_input_has_nan_keeps_it_whole() -> None:
    layer = nn.Linear(3, 1, bias=False)
    x = fake_quantize(torch.tensor([[0.3, torch.nan, 0.2]], requires_grad=True) * 1, torch.tensor(0.1), 0, -7, 7)
    with saving_as_codes(x):
        y = layer(x)
    y.sum().backward()
    assert layer.weight.grad.isnan().tolist() == [[False, True, False]]


SANITIZED = """
import sys, torch
from qat.kernels.cpu import build
build.FLAGS += ["-fsanitize=undefined,float-cast-overflow", "-fno-sanitize-recover=all", "-g"]
from qat.kernels.cpu import load_kernels
from qat.kernels.cpu.ranges import range_kernels
from tests.kernels.test_nan import FUNCTIONS, STRANGE, results
kernels, ranges = load_kernels(), range_kernels()
assert kernels and ranges
strange = torch.cat([STRANGE, torch.tensor([1e20, -1e20, 127.5, 255.0, -128.0])])
x = strange.repeat(3, 1)
for scale in (0.1, 0.0, 1e-45, 1e-38, 3e38, float("inf"), float("nan"), -0.1):
    for rows in (torch.tensor(scale), torch.full((3, 1), scale)):
        kernels.to_codes(x, rows, -7.0)
        y, saved = kernels.fake_quantize(x, rows, -7.0, 7.0, save=True)
        kernels.fake_quantize_backward(x, x, rows, -7.0, 7.0)
        kernels.fake_quantize_backward_from_saved(x, saved, -7.0, 7.0, rows.numel())
        for slopes in (torch.ones(2, 1), torch.ones(2, 9)):
            bounds = (-7 * rows, 7 * rows, rows)
            kernels.clip_and_round_backward(x, x, kernels.clip_and_round(x, *bounds), *bounds, slopes)
    y, codes = kernels.look_up(x, scale, -7.0, 7.0, torch.ones(15))
    kernels.look_up_backward(x, codes, torch.ones(15))
for width in (1.0, 0.0, 1e-45, 3e38, float("inf"), float("nan")):
    widths = torch.full((3,), width)
    counts = ranges.histogram(x, widths)
    for data in (counts, x):
        for symmetric, signed in ((True, True), (True, False), (False, False)):
            grid = (-7, 7) if signed else (0, 255)
            for lo, hi in ((-1.0, 1.0), (-width, width), (float("nan"),) * 2, (float("-inf"), float("inf")), (0.0, 0.0)):
                limits = torch.full((3,), lo), torch.full((3,), hi)
                ranges.best_fractions(data, widths, limits, grid, symmetric, signed, 20)
for function in FUNCTIONS.values():
    for rows in (False, True):
        results(function, x, torch.ones_like(x), rows)
print("clean")
"""


@native
@pytest.mark.slow
def test_no_conversion_in_c_is_undefined(tmp_path: Path) -> None:
    probe = tmp_path / "probe.c"
    probe.write_text("int main(void) { return 0; }")
    compiler = os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc") or "clang"
    command = [compiler, "-fsanitize=undefined", str(probe), "-o", str(tmp_path / "probe")]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("this compiler has no sanitizer")
    environment = {**os.environ, "QAT_CACHE_DIR": str(tmp_path), "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", SANITIZED],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "clean"
