"""Adds give the same codes whether or not products are rounded before they are added."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import nn

import qat
from qat.integer.modules import IntegerAdd
from qat.integer.short_ratios import Addition, is_short, with_short_ratios

CODES = np.arange(256, dtype=np.float32)


def adversarial_scales(generator: np.random.Generator) -> dict[str, float]:
    """Scales of a, b and a + b; a ratio near a half puts sums near the edges where codes change."""
    scales = {x: float(np.float32(s)) for x, s in zip("aby", generator.uniform(0.01, 0.05, 3), strict=True)}
    return scales | {"a": float(np.float32(scales["y"] * (0.5 + generator.integers(-4, 5) * 2.0**-24)))}


def add(scales: dict[str, float], fused: bool) -> np.ndarray:
    """Codes of all 256 x 256 sums with zero-points of 128: the products rounded once with their sums, or before them."""
    wide = np.float64 if fused else np.float32
    a, b = (np.float32(np.float32(scales[x]) / np.float32(scales["y"])) for x in "ab")
    fixed = np.float32(128) - np.float32(wide(a) * wide(128) + np.float32(b * np.float32(128)))
    inner = (CODES.astype(wide) * wide(b) + wide(fixed)).astype(np.float32)
    sums = (CODES.astype(wide)[:, None] * wide(a) + inner.astype(wide)[None, :]).astype(np.float32)
    return np.clip(np.rint(sums), 0, 255)


def test_no_code_depends_on_fused_multiply_adds() -> None:
    generator = np.random.default_rng(0)
    before = after = 0
    shifts: list[float] = []
    for _ in range(60):
        scales = adversarial_scales(generator)
        short = with_short_ratios(scales, [Addition(("a", "b"), "y")])
        shifts += [abs(short[x] / scales[x] - 1) for x in "ab"]
        assert short["y"] == scales["y"]
        assert is_short(np.float32(np.float32(short["b"]) / np.float32(short["y"])))
        before += int((add(scales, True) != add(scales, False)).sum())
        after += int((add(short, True) != add(short, False)).sum())
    assert np.median(shifts) < 2.0**-16
    assert max(shifts) < 2.0**-11
    assert before > 0
    assert after == 0


def test_a_tensor_of_two_adds_keeps_its_scale_and_free_outputs_follow() -> None:
    scales = {name: float(np.float32(s)) for name, s in zip("xabyz", (0.013, 0.021, 0.034, 0.055, 0.089), strict=True)}
    moved = with_short_ratios(scales, [Addition(("x", "a"), "y"), Addition(("x", "b"), "z")])
    pairs = [("x", "y"), ("a", "y"), ("x", "z"), ("b", "z")]
    assert all(is_short(np.float32(np.float32(moved[p]) / np.float32(moved[q]))) for p, q in pairs)
    bound = with_short_ratios(scales, [Addition(("x", "a"), "y"), Addition(("x", "y"), "z")])
    assert not is_short(np.float32(np.float32(bound["x"]) / np.float32(bound["y"])))  # y follows z, and x, too
    assert with_short_ratios(scales, [Addition(("x", "a"), "y")], dict.fromkeys(scales, False)) == scales


class Chain(nn.Module):
    """Three adds, each of which reads the one before, through a pool and a ReLU."""

    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(4, 4, 3, padding=1) for _ in range(3))
        self.head = nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for i, conv in enumerate(self.convs):
            x = torch.relu(x + conv(x)) if i else nn.functional.max_pool2d(x + conv(x), 2)
        return self.head(x.mean((2, 3)))


@pytest.mark.parametrize("policy", ["w8a8", "w4a4"])
def test_convert_moves_scales_of_adds_alone(policy: str) -> None:
    torch.manual_seed(0)
    x = torch.randn(16, 4, 8, 8)
    prepared = qat.prepare(Chain().eval(), policy, x)
    qat.calibrate(prepared, [x])
    integer = qat.convert(prepared)
    adds = [m for m in integer.modules() if isinstance(m, IntegerAdd)]
    assert len(adds) == 3
    assert not any(m.needs_fma for m in adds)
    assert all(b.a.scale == a.output.scale for a, b in pairwise(adds))
    trained = {name.removeprefix("sites."): q for name, q in prepared.named_modules() if name.startswith("sites.")}
    shifts = {
        n: abs(m.output.scale / float(trained[n].qparams().scale) - 1)
        for n, m in integer.named_children()
        if n in trained
    }
    assert 0 < max(shifts.values()) < 2.0**-11
    with torch.no_grad():
        error = (integer(x) - prepared(x)).square().mean() / prepared(x).var()
    assert error < 1e-2
