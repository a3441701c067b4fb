"""The compiled kernels against numpy, and what happens without a compiler."""

from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import qat
from qat.estimators import DSQ, EWGS, Estimator, Stochastic, StraightThrough
from qat.functional import clip_and_round, fake_quantize, floor_scale, look_up
from qat.kernels import byte_encoding, saving_as_codes
from qat.kernels.cpu import build, load_kernels
from qat.kernels.cpu.library import CHUNK, MIN_ELEMENTS_FOR_THREADS, ROUNDING_ERROR_STEPS, load_library
from tests.oracles import estimators
from tests.oracles import fake_quantize as oracle

native = pytest.mark.skipif(load_kernels() is None, reason="there is no C compiler, or QAT_NATIVE=0")

SHAPES = [
    ((5,), 1),
    ((CHUNK + 3,), 1),
    ((3, 7, 5, 5), 1),
    ((6, 5, 3, 3), 6),
    ((4, 33), 4),
    ((2, MIN_ELEMENTS_FOR_THREADS), 1),
]


def tensors(shape: tuple[int, ...], scales: int) -> tuple[Tensor, Tensor, Tensor]:
    """x, with values on the bounds -7 and 7 and beyond; scale, a power of two, so that they are exactly there; gradient."""
    x, grad = 3 * torch.randn(shape), torch.randn(shape)
    scale = 0.5 ** torch.arange(scales).float()
    x.view(-1)[:4] = torch.tensor([-7.0, 7.0, 99.0, -99.0])
    return x, scale.reshape(-1, *[1] * (len(shape) - 1)) if scales > 1 else scale.reshape(()), grad


def gradients(x: Tensor, scale: Tensor, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(y, dx, dscale) of an activation: a tensor that is not a leaf."""
    x, scale = x.clone().requires_grad_(), scale.clone().requires_grad_()
    y = fake_quantize(x * 1, scale, 0, -7, 7)
    return y.detach(), *torch.autograd.grad(y, (x, scale), grad)


def of_oracle(x: Tensor, scale: Tensor, grad: Tensor) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    shared = oracle.per_channel(tuple(x.shape)) if scale.numel() > 1 else oracle.per_tensor(tuple(x.shape))
    zero = np.zeros(scale.numel())
    arguments = (x.numpy(), scale.numpy().reshape(-1), zero, -7, 7, shared)
    return oracle.forward(*arguments), *oracle.backward(*arguments, grad.numpy())


@native
@pytest.mark.parametrize(("shape", "scales"), SHAPES)
def test_forward_and_mask_are_exact_and_the_scale_gradient_is_within_its_bound(shape, scales) -> None:
    x, scale, grad = tensors(shape, scales)
    y, dx, dscale = gradients(x, scale, grad)
    expected = of_oracle(x, scale, grad)
    assert np.array_equal(y.numpy(), expected[0])
    assert np.array_equal(dx.numpy(), expected[1])
    terms = np.abs(grad.numpy()).reshape(scales, -1).sum(axis=1)
    assert (np.abs(dscale.numpy().reshape(-1) - expected[2]) <= terms * (0.5 / ROUNDING_ERROR_STEPS + 1e-6)).all()


@native
def test_the_scale_gradient_is_that_of_the_paper_but_for_its_last_byte() -> None:
    """Over many elements the errors of one byte each cancel: far closer than the bound."""
    x, scale, grad = tensors((64, 1024), 1)
    exact = of_oracle(x, scale, grad)[2].item()
    found = gradients(x, scale, grad)[2].item()
    deviation = float(np.linalg.norm(grad.numpy())) / (
        2 * ROUNDING_ERROR_STEPS * 3**0.5
    )  # of uniform, independent errors
    assert found == pytest.approx(exact, abs=5 * deviation)
    assert found != np.float32(exact)  # it is kept in one byte: if it is not, memory doubles


@native
def test_one_byte_an_element_is_kept_of_an_activation_and_a_weight_is_not_copied() -> None:
    kept: list[Tensor] = []

    def pack(tensor: Tensor) -> Tensor:
        kept.append(tensor)
        return tensor

    weight, scale = torch.randn(64, 64, requires_grad=True), torch.tensor(0.1, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        fake_quantize(weight, scale, 0, -7, 7)
        assert [t.data_ptr() for t in kept if t.numel() > 1] == [weight.data_ptr()]
        kept.clear()
        fake_quantize(weight + 1, scale, 0, -7, 7)
    assert [t.dtype for t in kept if t.numel() > 1] == [torch.int8]


@native
@pytest.mark.parametrize("layout", ["channels_last", "transposed", "sliced"])
def test_every_layout_gives_the_same(layout: str) -> None:
    x, scale, grad = tensors((4, 8, 6, 6), 1)
    expected = gradients(x, scale, grad)
    strange = {
        "channels_last": lambda t: t.to(memory_format=torch.channels_last),
        "transposed": lambda t: t.transpose(2, 3).contiguous().transpose(2, 3),
        "sliced": lambda t: torch.stack([t, t], dim=-1)[..., 0],
    }[layout]
    for a, b in [(strange(x), grad), (x, strange(grad)), (strange(x), strange(grad))]:
        found = gradients(a, scale, b)
        assert torch.equal(found[0], expected[0])
        assert torch.equal(found[1], expected[1])
        assert torch.allclose(found[2], expected[2], rtol=1e-5)


@native
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("shape", "scales"), SHAPES)
def test_half_precision_is_float32_rounded_once(shape, scales, dtype: torch.dtype) -> None:
    """Forward and mask exactly, also of NaN and infinities, the sums but for their last bits."""
    x, scale, grad = tensors(shape, scales)
    x.view(-1)[:5] = torch.tensor([torch.nan, torch.inf, -torch.inf, 3e38, -0.0])
    x, grad = x.to(dtype), grad.to(dtype)
    found = gradients(x, scale, grad)
    y, dx, dscale = gradients(x.float(), scale, grad.float())
    assert (found[0].dtype, found[1].dtype, found[2].dtype) == (dtype, dtype, torch.float32)
    torch.testing.assert_close(found[0], y.to(dtype), rtol=0, atol=0, equal_nan=True)
    assert torch.equal(found[0].signbit()[1:], y.signbit()[1:])
    assert torch.equal(found[1], dx.to(dtype))
    torch.testing.assert_close(found[2], dscale, equal_nan=True)


@native
def test_the_default_dtype_changes_nothing() -> None:
    x, scale, grad = tensors((3, 7, 5, 5), 1)
    expected = gradients(x, scale, grad)
    torch.set_default_dtype(torch.float64)
    try:
        found = gradients(x, scale, grad)
    finally:
        torch.set_default_dtype(torch.float32)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@native
def test_an_expanded_gradient() -> None:
    x, scale = torch.randn(4, 5, requires_grad=True), torch.tensor(0.1)
    (fake_quantize(x * 1, scale, 0, -100, 100)).sum().backward()
    assert torch.equal(x.grad, torch.ones(4, 5))


@native
def test_no_number_depends_on_the_threads() -> None:
    x, scale, grad = tensors((3, MIN_ELEMENTS_FOR_THREADS), 1)
    one = gradients(x, scale, grad)
    torch.set_num_threads(2)
    try:
        two = gradients(x, scale, grad)
    finally:
        torch.set_num_threads(1)
    assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))


def learned_bounds(x: Tensor, scale: Tensor, grad: Tensor, rounding: Estimator) -> tuple[Tensor, ...]:
    """y, and gradients of x, lo, hi and scale, with bounds of -7 and 7 steps that learn on their own."""
    x, scale = x.clone().requires_grad_(), scale.clone().requires_grad_()
    lo, hi = (-7 * scale.detach()).requires_grad_(), (7 * scale.detach()).requires_grad_()
    y = clip_and_round(x, lo, hi, scale, rounding)
    return y.detach(), *torch.autograd.grad(y, (x, lo, hi, scale), grad)


@native
@pytest.mark.parametrize("rounding", [StraightThrough(), EWGS(0.5), DSQ(0.1)], ids=repr)
@pytest.mark.parametrize(("shape", "scales"), SHAPES)
def test_clip_and_round_is_the_formula(shape, scales, rounding: Estimator) -> None:
    x, scale, grad = tensors(shape, scales)
    y, dx, dlo, dhi, dscale = (t.numpy() for t in learned_bounds(x, scale, grad, rounding))
    rows, g, s = (
        x.double().numpy().reshape(scales, -1),
        grad.double().numpy().reshape(scales, -1),
        scale.numpy().reshape(-1, 1),
    )
    v = rows / s
    slope = {
        StraightThrough: lambda: np.ones_like(v),
        EWGS: lambda: estimators.ewgs(v, g, 0.5),
        DSQ: lambda: estimators.dsq(v, g, 0.1),
    }[type(rounding)]()
    rounded, inside = np.clip(np.rint(v), -7, 7), np.abs(v) < 7
    assert np.array_equal(y, (rounded * s).reshape(shape).astype(np.float32))
    close = {"rtol": 2e-4, "atol": 2e-4}
    np.testing.assert_allclose(dx.reshape(scales, -1), np.where(inside, g * slope, 0), **close)
    assert (dx.reshape(scales, -1) == 0)[~inside].all()
    np.testing.assert_allclose(dlo.reshape(-1), np.where(v <= -7, g, 0).sum(axis=1), **close)
    np.testing.assert_allclose(dhi.reshape(-1), np.where(v >= 7, g, 0).sum(axis=1), **close)
    expected = np.where(inside, g * (rounded - v * slope), 0).sum(axis=1)
    terms = np.abs(g * v).sum(axis=1)  # of sums in float32
    assert (np.abs(dscale.reshape(-1) - expected) <= 1e-5 * terms + 1e-4).all()


@native
@pytest.mark.parametrize("rounding", [StraightThrough(), EWGS(0.5), DSQ(0.1), Stochastic()], ids=repr)
@pytest.mark.parametrize("layout", ["channels_last", "sliced"])
def test_clip_and_round_in_c_is_that_of_torch(
    rounding: Estimator, layout: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def seeded(x: Tensor, grad: Tensor) -> tuple[Tensor, ...]:
        torch.manual_seed(0)
        return learned_bounds(x, scale, grad, rounding)

    x, scale, grad = tensors((4, 8, 6, 6), 1)
    x = x.to(memory_format=torch.channels_last) if layout == "channels_last" else torch.stack([x, x], dim=-1)[..., 0]
    found = seeded(x, grad)
    monkeypatch.setattr("qat.kernels.cpu.available", lambda: False)
    for mine, of_torch in zip(found, seeded(x, grad), strict=True):
        torch.testing.assert_close(mine, of_torch, rtol=1e-4, atol=1e-4)


@native
def test_clip_and_round_does_not_depend_on_the_threads_and_keeps_nan() -> None:
    x, scale, grad = tensors((3, MIN_ELEMENTS_FOR_THREADS), 1)
    one = learned_bounds(x, scale, grad, DSQ())
    torch.set_num_threads(2)
    try:
        assert all(torch.equal(a, b) for a, b in zip(one, learned_bounds(x, scale, grad, DSQ()), strict=True))
    finally:
        torch.set_num_threads(1)
    x[0, 0] = torch.nan
    y, dx, *_ = learned_bounds(x, scale, grad, DSQ())
    assert y.isnan().nonzero().tolist() == [[0, 0]]
    assert torch.isfinite(dx).all()
    assert dx[0, 0] == 0


@native
def test_nan_stays_nan_and_infinity_is_clipped() -> None:
    y = fake_quantize(torch.tensor([torch.nan, torch.inf, -torch.inf]), torch.tensor(0.5), 0, -8, 7)
    assert torch.isnan(y[0])
    assert y[1:].tolist() == [3.5, -4.0]


@native
def test_without_a_compiler_torch_does_it_and_the_forward_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    x, scale, grad = tensors((6, 5, 3, 3), 6)
    y, dx, dscale = gradients(x, scale, grad)
    monkeypatch.setattr("qat.kernels.cpu.available", lambda: False)
    composite = gradients(x, scale, grad)
    assert torch.equal(y, composite[0])
    assert torch.equal(dx, composite[1])
    assert torch.allclose(dscale, composite[2], atol=grad.abs().sum().item() / 504)


def test_a_relu_before_an_unsigned_site_costs_nothing_and_changes_nothing() -> None:
    network = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 3))
    prepared = qat.prepare(network, "w4a4", x := torch.randn(2, 1, 8, 8))
    site = prepared.sites["0"]
    assert site.fuses_relu
    assert "relu" not in prepared.code.lower().replace("rectifies", "")
    qat.calibrate(prepared, [x])
    hidden = network[0](x)
    with qat.mode(prepared, qat.Mode.OFF):
        assert torch.equal(site(hidden), torch.relu(hidden))
    hidden = hidden.detach().requires_grad_()
    (fused := site(hidden)).sum().backward()
    of_fused, hidden.grad = hidden.grad, None
    (separate := site(torch.relu(hidden))).sum().backward()
    assert torch.equal(fused, separate)
    assert torch.equal(of_fused, hidden.grad)


@pytest.mark.parametrize("compiler", [pytest.param(True, marks=native), False])
@pytest.mark.parametrize("layout", ["usual", "channels_last", "transposed"])
def test_look_up_is_indexing_and_sums_the_gradient_of_each_entry(
    compiler: bool, layout: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not compiler:
        monkeypatch.setattr("qat.kernels.cpu.available", lambda: False)
    x = 3 * torch.randn(5, 7, 40, 60)
    x[0, 0, 0, :3] = torch.tensor([torch.inf, -torch.inf, 99.0])
    x = {
        "usual": x,
        "channels_last": x.to(memory_format=torch.channels_last),
        "transposed": x.transpose(2, 3).contiguous().transpose(2, 3),
    }[layout].requires_grad_()
    values, slopes, grad = torch.randn(255, requires_grad=True), torch.randn(255), torch.randn(x.shape)
    y = look_up(x, torch.tensor([0.05]), -127, 127, values, slopes)
    y.backward(grad)
    codes = np.clip(np.rint(x.detach().numpy() / np.float32(0.05)), -127, 127).astype(int) + 127
    assert np.array_equal(y.detach().numpy(), values.detach().numpy()[codes])
    np.testing.assert_allclose(x.grad.numpy(), grad.numpy() * slopes.numpy()[codes], rtol=1e-6)
    expected = np.bincount(codes.ravel(), grad.double().numpy().ravel(), 255)
    np.testing.assert_allclose(values.grad.numpy(), expected, rtol=1e-4, atol=1e-4)
    assert y.stride() == x.stride() or layout == "transposed"


@pytest.mark.parametrize("compiler", [pytest.param(True, marks=native), False])
def test_look_up_keeps_nan_and_one_byte_an_element(compiler: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not compiler:
        monkeypatch.setattr("qat.kernels.cpu.available", lambda: False)
    kept: list[Tensor] = []
    x = torch.tensor([torch.nan, 1.0, -1.0], requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        y = look_up(x, torch.tensor([1.0]), 0, 2, torch.tensor([5.0, 6.0, 7.0]), torch.ones(3))
    assert y.isnan().tolist() == [True, False, False]
    assert y[1:].tolist() == [6.0, 5.0]
    assert [t.dtype for t in kept if len(t) == len(x) and t.dtype is not torch.float32] == [torch.uint8]


@native
def test_sums_of_look_up_do_not_depend_on_the_threads() -> None:
    def gradient() -> Tensor:
        values = torch.zeros(16, requires_grad=True)
        look_up(x, torch.tensor([0.2]), 0, 15, values, torch.ones(16)).backward(grad)
        return values.grad

    x, grad = torch.rand(5, MIN_ELEMENTS_FOR_THREADS) * 4, torch.randn(5, MIN_ELEMENTS_FOR_THREADS)
    one = gradient()
    torch.set_num_threads(2)
    try:
        assert torch.equal(gradient(), one)
    finally:
        torch.set_num_threads(1)


def test_what_cannot_be_built_is_said_in_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QAT_CACHE_DIR", str(tmp_path))
    source = tmp_path / "broken.c"
    source.write_text("this is not C")
    with pytest.raises(build.BuildError, match=r"(failed: .*error|no C compiler|no libgomp)"):
        build.shared_library(source)
    assert {path.name for path in (tmp_path / "native").glob("*")} <= {"lock"}, "nothing half-written is left"
    monkeypatch.setattr(build.shutil, "which", lambda name: None)
    with pytest.raises(build.BuildError, match="there is no C compiler"):
        build.shared_library(source)


@native
def test_a_library_is_built_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QAT_CACHE_DIR", str(tmp_path))
    source = tmp_path / "one.c"
    source.write_text("int one(void) { return 1; }")
    library = build.shared_library(source)
    written = library.stat().st_mtime_ns
    assert build.shared_library(source) == library
    assert library.stat().st_mtime_ns == written
    source.write_text("int one(void) { return 2; }")
    assert build.shared_library(source) != library


def test_it_can_be_switched_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QAT_NATIVE", "0")
    load_kernels.cache_clear()
    load_library.cache_clear()
    try:
        assert load_kernels() is None
    finally:
        load_kernels.cache_clear()
        load_library.cache_clear()


@native
@pytest.mark.parametrize("layer", [nn.Conv2d(4, 3, 3, bias=False), nn.Linear(8, 3)], ids=["conv", "linear"])
@pytest.mark.parametrize("bounds", [(0, 255), (-128, 127), (0, 15)], ids=str)
def test_a_layer_keeps_its_quantized_input_in_bytes_and_the_gradient_stays_bit_for_bit(layer, bounds) -> None:
    def gradient(keep: bool) -> Tensor:
        layer.zero_grad()
        noise = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0), requires_grad=True)
        x = fake_quantize(noise * 1, scale, 0, *bounds)
        assert byte_encoding(x) is not None
        with saving_as_codes(x) if keep else nullcontext():
            y = layer(x)
        y.square().sum().backward()
        return layer.weight.grad.clone()

    scale, packed = torch.tensor(0.013), []
    found = load_kernels()
    to_codes = found.to_codes
    found.to_codes = lambda *a: packed.append(result := to_codes(*a)) or result
    try:
        assert torch.equal(gradient(keep=True), gradient(keep=False))
    finally:
        del found.to_codes
    assert [(codes.dtype, codes.numel()) for codes in packed] == [(torch.uint8, 2 * 4 * 8 * 8)]


@native
@pytest.mark.parametrize(
    "layer", [nn.Conv2d(64, 40, 9, bias=False), nn.Linear(512, 130, bias=False)], ids=["conv", "linear"]
)
@pytest.mark.parametrize("order", [torch.contiguous_format, torch.channels_last])
def test_a_large_weight_is_kept_in_bytes_and_the_gradients_stay_bit_for_bit(layer, order, monkeypatch) -> None:
    """One scale for each output channel."""
    torch.manual_seed(0)
    weight = layer.weight.detach()
    weight = weight.contiguous(memory_format=order) if weight.ndim == 4 else weight
    scale = (0.01 + torch.rand(len(weight)) / 50).reshape(-1, *[1] * (weight.ndim - 1))
    x = torch.randn(2, 64, 12, 12) if weight.ndim == 4 else torch.randn(3, 512)

    def results(keep: bool) -> list[Tensor]:
        given, leaf = x.clone().requires_grad_(), weight.clone().requires_grad_()
        quantized = fake_quantize(leaf, scale, 0, -7, 7)
        with saving_as_codes(quantized) if keep else nullcontext():
            y = torch.func.functional_call(layer, {"weight": quantized}, (given,))
        y.square().sum().backward()
        return [y.detach(), given.grad, leaf.grad]

    kernels, packed = load_kernels(), []
    to_codes = kernels.to_codes
    monkeypatch.setattr(kernels, "to_codes", lambda *a: packed.append(result := to_codes(*a)) or result)
    assert all(torch.equal(a, b) for a, b in zip(results(True), results(False), strict=True))
    assert [codes.numel() for codes in packed] == [weight.numel()]


@native
def test_what_a_byte_does_not_hold_is_kept_as_it_is() -> None:
    wide = fake_quantize(torch.randn(4, requires_grad=True) * 1, torch.tensor(0.1), 0, -200, 200)
    rows = fake_quantize(torch.randn(4, 3, requires_grad=True) * 1, torch.ones(4, 1), 0, -7, 7)
    assert byte_encoding(wide) is None
    assert byte_encoding(rows) is None


@native
def test_what_was_written_into_is_kept_as_it_is() -> None:
    layer = nn.Linear(4, 2, bias=False)

    def gradient(x: Tensor) -> Tensor:
        layer.zero_grad()
        with saving_as_codes(x):
            layer(x).sum().backward()
        return layer.weight.grad.clone()

    x = fake_quantize(torch.randn(3, 4, requires_grad=True) * 1, torch.tensor(0.1), 0, -7, 7)
    assert torch.equal(gradient(x.add_(0.03)), x.sum(dim=0).expand(2, 4))


@pytest.mark.parametrize("shape", [(), (3, 1)])
def test_a_floor_in_the_kernel_is_the_floor_before_it(shape: tuple[int, ...]) -> None:
    """Values and gradients, above the floor and below it, of leaves and of other tensors."""
    scale, lowest = torch.full(shape, 0.05), torch.full(shape, 0.1)
    if shape:
        scale[0] = 0.3
    for sign in (1.0, -1.0):
        results = []
        for given in (True, False):
            s, leaf = scale.clone().requires_grad_(), torch.linspace(-0.2, 3, 21).reshape(3, 7).requires_grad_()
            step = (s, 0, -7, 7, 0.5, lowest) if given else (floor_scale(s, lowest), 0, -7, 7, 0.5)
            y = fake_quantize(leaf * 1, *step) + fake_quantize(leaf, *step)  # type: ignore[arg-type]
            (sign * y).sum().backward()
            results += [y.detach(), s.grad, leaf.grad]
        assert all(torch.equal(a, b) for a, b in zip(results[:3], results[3:], strict=True))
        raised = sign < 0
        assert bool((results[1].flatten()[-1] < 0) == raised), (
            "below the floor only a gradient that raises the scale is left"
        )
