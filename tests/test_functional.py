from collections.abc import Callable

import numpy as np
import onnx
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from onnx.reference import ReferenceEvaluator
from torch import Tensor

from qat import PerChannel, PerGroup, PerTensor
from qat.estimators import StraightThrough
from qat.functional import (
    clamp_straight_through,
    clip,
    dequantize,
    fake_quantize,
    fake_quantize_with_estimator,
    quantize,
    scale_gradient,
    with_gradient_of,
)
from qat.kernels.cpu import available
from tests.oracles import fake_quantize as oracle

GRIDS = [(-127, 127), (-128, 127), (0, 255), (-8, 7), (-7, 7), (0, 15), (-1, 1), (-2, 1), (0, 3)]
LAYOUTS = {
    "per_tensor": (PerTensor(), oracle.per_tensor),
    "per_channel": (PerChannel(), oracle.per_channel),
    "per_channel_1": (PerChannel(1), lambda shape: oracle.per_channel(shape, 1)),
    "per_group": (PerGroup(6), lambda shape: oracle.per_group(shape, 6)),
}
SHAPE = (4, 3, 2, 2)
layouts = pytest.mark.parametrize("layout", LAYOUTS)
grids = pytest.mark.parametrize("grid", GRIDS, ids=str)
affine = pytest.mark.parametrize("affine", [False, True], ids=["symmetric", "affine"])


@pytest.fixture(autouse=True, params=["native", "composite"])
def _implementation(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything here holds for the compiled kernels and for torch's own operations."""
    if request.param == "composite":
        monkeypatch.setattr("qat.kernels.cpu.available", lambda: False)
    elif not available():
        pytest.skip("there is no C compiler, or QAT_NATIVE=0")


class Case:
    """A tensor with interior values, ties, values on the bounds, values that round onto them, and values far beyond."""

    def __init__(self, layout: str, grid: tuple[int, int], affine: bool, powers_of_two: bool = True) -> None:
        rng = np.random.default_rng(0)
        self.granularity, number = LAYOUTS[layout]
        self.shared = number(SHAPE)
        self.qmin, self.qmax = grid
        n = self.shared.max() + 1
        self.scale = (2.0 ** rng.integers(-4, 3, n) if powers_of_two else rng.uniform(0.01, 2, n)).astype(np.float32)
        self.zero_point = rng.integers(self.qmin, self.qmax + 1, n) if affine else np.zeros(n, dtype=int)
        lo, hi = self.qmin - self.zero_point[self.shared], self.qmax - self.zero_point[self.shared]
        choices = np.stack([rng.uniform(lo, hi), lo, hi, lo + 0.5, hi - 0.5, lo + 0.25, hi - 0.25])
        choices = np.concatenate(
            [choices, np.stack([lo - 0.25, hi + 0.25, lo - 0.5, hi + 0.5, lo * 3.0 - 9, hi * 3.0 + 9])]
        )
        v = np.take_along_axis(choices, rng.integers(0, len(choices), (1, *SHAPE)), axis=0)[0]
        if not powers_of_two:
            v = np.where((v == lo) | (v == hi), v * 1.1, v)  # on a bound up to rounding only
        self.x = (v * self.scale[self.shared]).astype(np.float32)
        self.grad = rng.normal(size=SHAPE).astype(np.float32)

    @property
    def numpy(self) -> tuple:
        return self.x, self.scale, self.zero_point, self.qmin, self.qmax, self.shared

    def torch(self, scale: Tensor, x: Tensor) -> tuple:
        zero_point = torch.from_numpy(self.zero_point).int()
        broadcastable = self.granularity.broadcastable
        return (
            self.granularity.view(x),
            broadcastable(scale, SHAPE),
            broadcastable(zero_point, SHAPE),
            self.qmin,
            self.qmax,
        )

    def run(self, function: Callable[..., Tensor], gradient_scale: float = 1.0) -> tuple[Tensor, Tensor, Tensor]:
        """(output, gradient of x, gradient of scale) of `function`."""
        x, scale = torch.from_numpy(self.x).requires_grad_(), torch.from_numpy(self.scale).requires_grad_()
        options = {} if gradient_scale == 1.0 else {"gradient_scale": gradient_scale}
        y = function(*self.torch(scale, x), **options).reshape(SHAPE)
        y.backward(torch.from_numpy(self.grad))
        return y.detach(), x.grad, scale.grad


@layouts
@grids
@affine
@pytest.mark.parametrize("powers_of_two", [True, False], ids=["exact", "inexact"])
def test_forward_and_gradients_are_those_of_the_paper(layout, grid, affine, powers_of_two) -> None:
    case = Case(layout, grid, affine, powers_of_two)
    y, dx, dscale = case.run(fake_quantize, gradient_scale=0.25)
    expected_dx, expected_dscale = oracle.backward(*case.numpy, case.grad, g=0.25)
    assert np.array_equal(y.numpy(), oracle.forward(*case.numpy))
    np.testing.assert_allclose(dx, expected_dx, rtol=0, atol=0)
    size = np.abs(case.grad).sum() * max(abs(case.qmin), case.qmax)
    np.testing.assert_allclose(dscale, expected_dscale, rtol=1e-5, atol=1e-6 * size)


@layouts
@grids
@affine
def test_fake_quantize_is_dequantize_of_quantize_bit_for_bit(layout, grid, affine) -> None:
    case = Case(layout, grid, affine, powers_of_two=False)
    scale, x = torch.from_numpy(case.scale), torch.from_numpy(case.x)
    view, s, z, qmin, qmax = case.torch(scale, x)
    codes = quantize(view, s, z, qmin, qmax)
    assert torch.equal(fake_quantize(view, s, z, qmin, qmax), dequantize(codes, s, z))
    assert torch.equal(codes, codes.round())
    assert codes.min() >= qmin
    assert codes.max() <= qmax
    assert np.array_equal(codes.reshape(SHAPE).numpy(), oracle.quantize(*case.numpy))


@pytest.mark.parametrize(
    ("v", "dx", "dscale"),
    [
        (-9.0, 0.0, -8.0),
        (-8.5, 0.0, -8.0),
        (-8.0, 0.0, -8.0),  # on the bound is outside: eq. 3 is strict
        (np.nextafter(np.float32(-8), np.float32(0)), 1.0, -8.0 + 7.9999995),
        (-7.75, 1.0, -0.25),  # rounds onto the bound and is inside
        (-0.5, 1.0, 0.5),
        (0.0, 1.0, 0.0),
        (1.5, 1.0, 0.5),
        (6.75, 1.0, 0.25),
        (np.nextafter(np.float32(7), np.float32(0)), 1.0, 7.0 - 6.9999995),
        (7.0, 0.0, 7.0),
        (7.25, 0.0, 7.0),
        (1e30, 0.0, 7.0),
    ],
)
@pytest.mark.parametrize("step", [0.5, 1.0, 4.0])
def test_one_value_at_a_time(v: float, dx: float, dscale: float, step: float) -> None:
    x, scale = torch.tensor([v], dtype=torch.float32).mul(step).requires_grad_(), torch.tensor(step, requires_grad=True)
    fake_quantize(x, scale, 0, -8, 7).sum().backward()
    assert x.grad.item() == dx
    assert scale.grad.item() == pytest.approx(dscale, abs=1e-7)


@pytest.mark.parametrize("step", np.random.default_rng(1).uniform(0.001, 3, 20).astype(np.float32).tolist())
def test_a_value_that_was_clipped_before_is_on_the_bound(step: float) -> None:
    """The bound is the float32 number that the forward gives there, for every scale and not only for powers of two."""
    scale = torch.tensor(step, requires_grad=True)
    x = fake_quantize(torch.tensor([-1e4, 1e4]), scale, 0, -127, 127).detach().requires_grad_()
    fake_quantize(x, scale, 0, -127, 127).backward(torch.tensor([1.0, 3.0]))
    assert x.grad.tolist() == [0.0, 0.0]
    assert scale.grad.item() == pytest.approx(-127 + 3 * 127)


def round_then_clamp(x: Tensor, scale: Tensor, zero_point: Tensor, qmin: int, qmax: int) -> Tensor:
    """The usual order, with autograd: the same forward."""
    v = x / scale
    v = v + (torch.round(v) - v).detach()
    return (torch.clamp(v + zero_point, qmin, qmax) - zero_point) * scale


def clamp_then_round(x: Tensor, scale: Tensor, zero_point: Tensor, qmin: int, qmax: int) -> Tensor:
    """The order of numerics.md, item 1, with autograd."""
    v = torch.clamp(x / scale, (qmin - zero_point).float(), (qmax - zero_point).float())
    return (v + (torch.round(v) - v).detach()) * scale


def test_round_then_clamp_has_the_same_forward_and_another_scale_gradient() -> None:
    """numerics.md, item 1: values that round onto a bound get the wrong branch."""
    rng = np.random.default_rng(0)
    case = Case("per_tensor", (-8, 7), affine=False)
    case.scale[:] = 0.5
    case.x = (rng.normal(0, 5, SHAPE) * 0.5).astype(np.float32)
    case.x[case.x / 0.5 % 1 == 0] += 0.01  # nothing on a bound, where autograd's clamp passes gradients
    case.grad = np.ones(SHAPE, np.float32)
    v = case.x / 0.5
    assert ((v > 7) & (v < 7.5)).any() or ((v < -8) & (v > -8.5)).any()  # the situation is there
    expected = oracle.backward(*case.numpy, case.grad)[1][0]
    outputs = {f: case.run(f) for f in (fake_quantize, clamp_then_round, round_then_clamp)}
    for y, _, _ in outputs.values():
        assert np.array_equal(y.numpy(), oracle.forward(*case.numpy))
    assert outputs[fake_quantize][2].item() == pytest.approx(expected, rel=1e-5)
    assert outputs[clamp_then_round][2].item() == pytest.approx(expected, rel=1e-5)
    assert abs(outputs[round_then_clamp][2].item() - expected) > 5


@grids
def test_gradients_are_finite_differences_of_what_rounding_leaves_differentiable(grid: tuple[int, int]) -> None:
    """Straight-through: rounding adds a constant. With that constant frozen, the function is differentiable off the bounds."""
    case = Case("per_channel", grid, affine=True, powers_of_two=False)
    lo, hi = (bound - case.zero_point[case.shared] for bound in grid)
    v = case.x.astype(np.float64) / case.scale[case.shared]
    far_from_bound = (np.abs(v - lo) > 1e-3) & (np.abs(v - hi) > 1e-3)
    case.x, case.grad = np.where(far_from_bound, case.x, 0).astype(np.float32), case.grad * far_from_bound
    frozen = np.rint(case.x / case.scale[case.shared]) - v  # float32: ties fall as they do in the forward

    def surrogate(x: np.ndarray, scale: np.ndarray) -> float:
        s = scale[case.shared]
        inside = (v > lo) & (v < hi)
        y = (np.clip(x / s, lo, hi) + np.where(inside, frozen, 0)) * s
        return float((y * case.grad).sum())

    x, scale, h = case.x.astype(np.float64), case.scale.astype(np.float64), 1e-6
    _, dx, dscale = case.run(fake_quantize)
    for i in range(len(scale)):
        e = np.eye(len(scale))[i] * h
        difference = (surrogate(x, scale + e) - surrogate(x, scale - e)) / (2 * h)
        assert dscale[i].item() == pytest.approx(difference, rel=1e-3, abs=2e-3)
    for index in np.ndindex(SHAPE):
        e = np.zeros(SHAPE)
        e[index] = h
        difference = (surrogate(x + e, scale) - surrogate(x - e, scale)) / (2 * h)
        assert dx[index].item() == pytest.approx(difference, rel=1e-4, abs=1e-4)


def onnx_round_trip(dtype: int, axis: int | None) -> Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]:
    """x, scale, zero_point -> DequantizeLinear(QuantizeLinear(x)) of the ONNX reference implementation."""
    attributes = {} if axis is None else {"axis": axis}
    nodes = [
        onnx.helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"], **attributes),
        onnx.helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y"], **attributes),
    ]
    value = onnx.helper.make_tensor_value_info
    inputs = [value("x", 1, None), value("s", 1, None), value("z", dtype, None)]
    graph = onnx.helper.make_graph(nodes, "round_trip", inputs, [value("y", 1, None)])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 21)])
    run = ReferenceEvaluator(model).run
    storage = onnx.helper.tensor_dtype_to_np_dtype(dtype)
    return lambda x, s, z: run(None, {"x": x, "s": s, "z": z.astype(storage)})[0]


OF_ONNX = {(-128, 127): onnx.TensorProto.INT8, (0, 255): onnx.TensorProto.UINT8}
OF_ONNX |= {(-8, 7): onnx.TensorProto.INT4, (0, 15): onnx.TensorProto.UINT4}
ROUND_TRIPS = {(grid, axis): onnx_round_trip(dtype, axis) for grid, dtype in OF_ONNX.items() for axis in (None, 1)}
values = st.one_of(st.floats(-300, 300, width=32), st.integers(-600, 600).map(lambda n: n / 2))


@pytest.mark.parametrize("grid", OF_ONNX, ids=str)
@settings(max_examples=60)
@given(v=st.lists(values, min_size=1, max_size=8), scale=st.floats(2**-13, 100, width=32), zero=st.integers(0, 255))
@example(v=[0.5, 1.5, 2.5, -0.5, -1.5, -2.5, 7.5, -8.5, 127.5, -128.5], scale=1.0, zero=0)
@example(v=[0.5, 1.5, 2.5, -0.5, -1.5, -2.5, 7.5, -8.5, 127.5, -128.5], scale=0.25, zero=3)
def test_forward_is_that_of_onnx(grid: tuple[int, int], v: list[float], scale: float, zero: int) -> None:
    qmin, qmax = grid
    zero_point = np.array(qmin + zero % (qmax - qmin + 1))
    s = np.array(scale, np.float32)
    x = (np.array(v) * scale).astype(np.float32)
    expected = ROUND_TRIPS[grid, None](x, s, zero_point)
    y = fake_quantize(torch.from_numpy(x), torch.from_numpy(s), torch.from_numpy(zero_point).int(), qmin, qmax)
    assert np.array_equal(y.numpy(), expected)


@pytest.mark.parametrize("grid", OF_ONNX, ids=str)
def test_forward_per_channel_is_that_of_onnx(grid: tuple[int, int]) -> None:
    case = Case("per_channel_1", grid, affine=True, powers_of_two=False)
    y, _, _ = case.run(fake_quantize)
    assert np.array_equal(y.numpy(), ROUND_TRIPS[grid, 1](case.x, case.scale, case.zero_point))


def test_division_is_not_multiplication_by_the_reciprocal() -> None:
    """numerics.md, item 2: the reciprocal moves many exact ties to the other code; ONNX and we divide."""
    scale = np.repeat(np.arange(3, 1000, dtype=np.float32) / 1024, 7)
    tie = np.tile(np.arange(7, dtype=np.float32) + 0.5, 997)
    x = tie * scale  # exact: few digits on both sides
    flipped = np.rint(x * (np.float32(1) / scale)) != np.rint(tie)
    assert flipped.mean() > 0.02
    codes = quantize(torch.from_numpy(x), torch.from_numpy(scale), 0, -8, 7)
    assert np.array_equal(codes.numpy(), np.rint(tie))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_dtypes_come_back_and_are_calculated_in_float32(dtype: torch.dtype) -> None:
    x = (torch.randn(500) * 60).to(dtype)
    scale = torch.tensor(0.37)
    y = fake_quantize(x, scale, 0, -127, 127)
    assert y.dtype is dtype
    assert torch.equal(y, fake_quantize(x.float(), scale, 0, -127, 127).to(dtype))
    assert quantize(x, scale, 0, -127, 127).dtype is torch.float32


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_scale_gradient_of_a_half_precision_tensor_is_calculated_in_float32(dtype: torch.dtype) -> None:
    scale, x = torch.tensor(0.37), (torch.randn(4000) * 18).to(dtype)
    gradients = []
    for values in (x, x.float()):
        s = scale.clone().requires_grad_()
        fake_quantize(values, s, 0, -127, 127).backward(torch.ones_like(values))
        gradients.append(s.grad.item())
    assert gradients[0] == pytest.approx(gradients[1], rel=1e-4)


def test_gradients_only_where_they_are_wanted() -> None:
    x, scale = torch.randn(3, requires_grad=True), torch.tensor(0.1)
    fake_quantize(x, scale, 0, -8, 7).sum().backward()
    assert x.grad is not None
    scale.requires_grad_()
    fake_quantize(x.detach(), scale, 0, -8, 7).sum().backward()
    assert scale.grad is not None
    assert scale.grad.shape == scale.shape


@settings(max_examples=100)
@given(
    v=st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=20),
    scale=st.floats(2**-20, 2**20, width=32),
    grid=st.sampled_from(GRIDS),
)
def test_quantizing_twice_is_quantizing_once(v: list[float], scale: float, grid: tuple[int, int]) -> None:
    once = fake_quantize(torch.tensor(v), torch.tensor(scale), 0, *grid)
    assert torch.equal(fake_quantize(once, torch.tensor(scale), 0, *grid), once)


def test_clip_gives_a_value_on_a_bound_to_the_bound() -> None:
    x = torch.tensor([-3.0, -1.0, 0.5, 2.0, 9.0], requires_grad=True)
    lo, hi = torch.tensor(-1.0, requires_grad=True), torch.tensor(2.0, requires_grad=True)
    y = clip(x, lo, hi)
    y.backward(torch.tensor([1.0, 10.0, 100.0, 1000.0, 10_000.0]))
    assert y.tolist() == [-1.0, -1.0, 0.5, 2.0, 2.0]
    assert x.grad.tolist() == [0.0, 0.0, 100.0, 0.0, 0.0]
    assert (lo.grad.item(), hi.grad.item()) == (11.0, 11_000.0)


def test_held_values_come_back() -> None:
    x = torch.tensor([-5.0, 0.5, 5.0], requires_grad=True)
    y = clamp_straight_through(x, torch.tensor([-1.0, -1.0, -1.0]), 2.0)
    y.sum().backward()
    assert y.tolist() == [-1.0, 0.5, 2.0]
    assert x.grad.tolist() == [1.0, 1.0, 1.0]


def test_values_of_one_and_gradient_of_another() -> None:
    value, source = torch.randn(1000) * 1e3, (torch.randn(1000) * 1e-3).requires_grad_()
    y = with_gradient_of(value, source)
    (scale_gradient(y, 0.25) * 2).sum().backward()
    assert torch.equal(y, value)
    assert source.grad.unique().tolist() == [0.5]


@layouts
@affine
def test_another_estimator_changes_no_output(layout, affine) -> None:
    case = Case(layout, (-8, 7), affine, powers_of_two=False)
    y, dx, dscale = case.run(
        lambda *arguments, **options: fake_quantize_with_estimator(StraightThrough(), *arguments, **options), 0.5
    )
    expected, expected_dx, expected_dscale = case.run(fake_quantize, 0.5)
    assert torch.equal(y, expected)
    torch.testing.assert_close(dx, expected_dx)
    torch.testing.assert_close(dscale, expected_dscale, rtol=1e-4, atol=1e-4)
