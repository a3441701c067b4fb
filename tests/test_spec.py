import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qat import Grid, PerChannel, QuantSpec
from qat.functional import dequantize, fake_quantize, quantize
from qat.spec import SMALLEST_SCALE

GOLDEN = [
    # grid, symmetric, lo, hi, scale, zero_point
    (Grid(8, narrow=True), True, -1.0, 127.0, 1.0, 0),
    (Grid(8), True, -254.0, 1.0, 2.0, 0),  # by qmax, not by (qmax - qmin) / 2
    (Grid(2, narrow=True), True, -3.0, 2.0, 3.0, 0),
    (Grid(2), True, -3.0, 2.0, 3.0, 0),
    (Grid(4, signed=False), True, -9.0, 30.0, 2.0, 0),  # an unsigned grid has no use for lo
    (Grid(8, signed=False), False, 0.0, 510.0, 2.0, 0),
    (Grid(8, signed=False), False, -255.0, 255.0, 2.0, 128),  # 127.5 rounds half to even
    (Grid(8, signed=False), False, -510.0, 0.0, 2.0, 255),
    (Grid(8, signed=False), False, 100.0, 255.0, 1.0, 0),  # widened to contain 0.0
    (Grid(8, signed=False), False, -255.0, -7.0, 1.0, 255),
    (Grid(8), False, 0.0, 255.0, 1.0, -128),
    (Grid(8), False, -64.0, 191.0, 1.0, -64),
    (Grid(4, signed=False), False, -3.75, 3.75, 0.5, 8),
    (Grid(4, signed=False), False, -4.1, 3.4, 0.5, 8),
    (Grid(4, signed=False, narrow=True), False, 0.0, 14.0, 1.0, 1),
]


def of(*values: float) -> torch.Tensor:
    return torch.tensor(values)


@pytest.mark.parametrize(("grid", "symmetric", "lo", "hi", "scale", "zero_point"), GOLDEN)
def test_a_range_becomes_scale_and_zero_point(grid, symmetric, lo, hi, scale, zero_point) -> None:
    found = QuantSpec(grid, symmetric=symmetric).qparams(of(lo), of(hi))
    torch.testing.assert_close(found.scale, of(scale))
    assert found.zero_point.tolist() == [zero_point]
    assert (found.scale.dtype, found.zero_point.dtype) == (torch.float32, torch.int32)


finite = st.floats(-1e6, 1e6, width=32)


@settings(max_examples=150)
@given(lo=finite, hi=finite, bits=st.integers(2, 8), signed=st.booleans(), symmetric=st.booleans())
def test_zero_is_exact_and_the_range_is_covered(lo: float, hi: float, bits: int, signed: bool, symmetric: bool) -> None:
    lo, hi = min(lo, hi), max(lo, hi)
    grid = Grid(bits, signed, narrow=signed and symmetric)
    scale, zero_point = QuantSpec(grid, symmetric=symmetric).qparams(of(lo), of(hi))
    assert scale >= SMALLEST_SCALE
    assert grid.qmin <= zero_point <= grid.qmax
    assert fake_quantize(of(0.0), scale, zero_point, grid.qmin, grid.qmax).item() == 0.0
    reached = (min(lo, 0.0), max(hi, 0.0)) if signed or not symmetric else (0.0, max(hi, 0.0))
    ends = dequantize(quantize(of(*reached), scale, zero_point, grid.qmin, grid.qmax), scale, zero_point)
    # affine: nudging the zero-point moves the range by half a step at most, and rounding adds half a step
    assert ((ends - of(*reached)).abs() <= scale * (0.5 if symmetric else 1.0) * (1 + 1e-5)).all()


def test_a_dead_channel_borrows_the_largest_scale() -> None:
    spec = QuantSpec(Grid(4, narrow=True), PerChannel())
    assert spec.qparams(of(-7.0, 0.0, 0.0), of(1.0, 0.0, 14.0)).scale.tolist() == [1.0, 2.0, 2.0]
    affine = QuantSpec(Grid(8, signed=False), PerChannel(), symmetric=False).qparams(of(-255.0, 0.0), of(255.0, 0.0))
    assert affine.scale.tolist() == [2.0, 2.0]
    assert affine.zero_point.tolist() == [128, 0]


def test_a_dead_tensor_has_a_scale() -> None:
    assert QuantSpec(Grid(8)).qparams(of(0.0), of(0.0)).scale.tolist() == [1.0]
    assert QuantSpec(Grid(8, signed=False)).qparams(of(-3.0), of(-1.0)).scale.tolist() == [1.0]


def test_no_scale_is_below_the_smallest() -> None:
    assert QuantSpec(Grid(8)).qparams(of(0.0), of(1e-40)).scale.tolist() == [SMALLEST_SCALE]


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("end", [0, 1])
def test_a_range_that_is_not_finite_is_refused(bad: float, end: int) -> None:
    ends = [of(-1.0, -1.0), of(1.0, 1.0)]
    ends[end][1] = bad
    with pytest.raises(ValueError, match=r"is not finite: look for NaN in weights or data"):
        QuantSpec(Grid(8), PerChannel()).qparams(*ends)


def test_an_affine_range_whose_width_is_not_finite_is_refused() -> None:
    with pytest.raises(ValueError, match=r"is not finite"):
        QuantSpec(Grid(8), symmetric=False).qparams(of(-2e38), of(2e38))
    assert torch.isfinite(QuantSpec(Grid(8)).qparams(of(-3e38), of(3e38)).scale).all()
