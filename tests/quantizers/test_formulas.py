"""Each quantizer against its paper's equations, in numpy float64. LSQ and Static: test_lsq.py; estimators: tests/estimators."""

from itertools import product

import numpy as np
import pytest
import torch
from torch import Tensor

from qat import Grid, PerChannel, QuantSpec
from qat.estimators import EWGS
from qat.quantizers import QIL, TQT, APoT, Binary, KMeans, LSQPlus, PowersOfTwo, Quantizer, Ternary
from qat.quantizers.apot import TERMS
from qat.quantizers.nf4 import NORMAL_FLOAT
from qat.quantizers.sawb import COEFFICIENTS
from tests.oracles import sawb
from tests.oracles.fake_quantize import Array
from tests.quantizers.catalogue import LAYOUTS, SHAPE, Case, calibrate, data

layouts = pytest.mark.parametrize("layout", ["per_tensor", "per_channel", "per_group"])
close = {"rtol": 2e-4, "atol": 1e-5}


def run(quantizer: Quantizer, x: Tensor) -> tuple[Array, Array, Array, Array]:
    """(x, y, gradient of y, gradient of x), float64."""
    leaf, grad = x.clone().requires_grad_(), torch.randn(x.shape)
    y = quantizer(leaf)
    y.backward(grad)
    return tuple(t.detach().double().numpy() for t in (x, y, grad, leaf.grad))


def summed(values: Array, shared: Array) -> Array:
    """One sum for each number in `shared`."""
    return np.bincount(shared.ravel(), values.ravel())


def number(parameter: Tensor, shared: Array) -> Array:
    """A vector, spread over the elements that share each of its entries."""
    return parameter.detach().double().numpy()[shared]


def table_input(quantizer: Quantizer, x: Array) -> Array:
    """What the function of an activation sees: values of 8 bits, and twice the reach for what is clipped."""
    n = np.float32(quantizer.fine_grid.qmax)
    scale = quantizer.saturation_point().numpy() / n
    codes = np.clip(np.rint(x.astype(np.float32) / scale), quantizer.fine_grid.qmin, n).astype(np.float64)
    return np.where(np.abs(codes) == n, 2 * codes, codes) * scale.astype(np.float64)


def elements_per_scale(layout: str, shared: Array) -> int:
    """N of LSQ's gradient scale: elements that share a scale, in one sample."""
    return 12 if layout == "activation" else int((shared == 0).sum())


tables = pytest.mark.parametrize(
    ("layout", "form"),
    [
        ("activation", "unsigned"),
        ("activation", "full"),
        *((w, "signed") for w in ("per_tensor", "per_channel", "per_group")),
    ],
)

# PACT


@pytest.mark.parametrize("layout", ["activation", "per_tensor", "per_channel", "per_group"])
@pytest.mark.parametrize("form", ["unsigned", "signed", "full"])
def test_pact(layout: str, form: str) -> None:
    quantizer, shared = Case("pact", layout, 4, form).calibrated(0.4 * data()), LAYOUTS[layout][2](SHAPE)
    qmin, qmax = quantizer.spec.grid.qmin, quantizer.spec.grid.qmax
    x, y, g, dx = run(quantizer, data())
    hi = number(quantizer.hi, shared)
    lo = hi * qmin / qmax
    clipped = np.clip(x, lo, hi)  # eq. 1
    np.testing.assert_allclose(y, np.rint(clipped * qmax / hi) * hi / qmax, **close)  # eq. 2
    np.testing.assert_allclose(dx, np.where((x > lo) & (x < hi), g, 0), **close)
    dhi = np.where(x >= hi, g, np.where(x <= lo, g * qmin / qmax, 0))  # eq. 3
    np.testing.assert_allclose(quantizer.hi.grad.numpy(), summed(dhi, shared), **close)
    assert (x >= hi).any()
    assert (dx != 0).any()


# DoReFa


@layouts
def test_dorefa(layout: str) -> None:
    weight = 0.5 * torch.randn(SHAPE)
    quantizer, shared = Case("dorefa", layout).calibrated(weight), LAYOUTS[layout][2](SHAPE)
    x, y, g, dx = run(quantizer, weight)
    hi, bent = number(quantizer.scale, shared) * 7, np.tanh(x)
    largest = np.array([np.abs(bent[shared == n]).max() for n in range(shared.max() + 1)])[shared]
    np.testing.assert_allclose(y, hi * np.rint(7 * bent / largest) / 7, **close)  # eq. 9
    through = -summed(g * hi * bent, shared)[shared] / largest**2 * np.sign(bent) * (np.abs(bent) == largest)
    np.testing.assert_allclose(dx, (g * hi / largest + through) * (1 - bent**2), **close)


def test_dorefa_leaves_a_dead_channel_finite() -> None:
    weight = torch.zeros(SHAPE, requires_grad=True)
    y = Case("dorefa", "per_channel").calibrated(torch.zeros(SHAPE))(weight)
    y.sum().backward()
    assert not y.any()
    assert torch.isfinite(weight.grad).all()


def test_dorefa_does_not_stretch_a_dead_channel_without_limit() -> None:
    """One step of SGD would throw its weights to the ends of the range."""
    weight = torch.randn(SHAPE)
    weight[1] = 0.0
    weight.requires_grad_()
    quantizer = Case("dorefa", "per_channel").calibrated(weight.detach())
    quantizer(weight).backward(torch.randn(SHAPE))
    norms = weight.grad.flatten(1).norm(dim=1)
    assert norms[1] <= 1024 * quantizer.scale[1] * 7 / torch.tanh(quantizer.scale[1] * 7) * norms[[0, 2, 3]].max()


# TQT


@pytest.mark.parametrize("layout", ["activation", "per_tensor", "per_channel", "per_group"])
@pytest.mark.parametrize("form", ["unsigned", "full"])
def test_tqt(layout: str, form: str) -> None:
    quantizer, shared = Case("tqt", layout, 4, form).calibrated(0.3 * data()), LAYOUTS[layout][2](SHAPE)
    n, p = quantizer.spec.grid.qmin, quantizer.spec.grid.qmax
    x, y, g, dx = run(quantizer, data())
    s = 2 ** np.ceil(number(quantizer.log2_scale, shared))  # eq. 4
    np.testing.assert_array_equal(y, s * np.clip(np.rint(x / s), n, p))
    inside = (n < x / s) & (x / s < p)  # as in LSQ; the paper asks the rounded value
    np.testing.assert_array_equal(dx, np.where(inside, g, 0))  # eq. 8
    dlog = s * np.log(2) * np.where(inside, np.rint(x / s) - x / s, np.where(x < 0, n, p))  # eq. 7
    elements_per_scale = 12 if layout == "activation" else (shared == 0).sum()
    expected = summed(g * dlog, shared) / np.sqrt(elements_per_scale * p)
    np.testing.assert_allclose(quantizer.log2_scale.grad.numpy(), expected, **close)
    assert inside.any()
    assert not inside.all()


def test_tqt_scales_are_powers_of_two_in_limits() -> None:
    quantizer = TQT(QuantSpec(Grid(8, narrow=True), PerChannel()), (6, 2))
    with torch.no_grad():
        quantizer.log2_scale.copy_(torch.tensor([-1e9, -3.2, -3.0, 0.01, 12.0, 1e9]))
    assert quantizer.qparams().scale.tolist() == [2.0**-60, 0.125, 0.125, 2.0, 4096.0, 2.0**60]


# LSQ+


def test_lsq_plus() -> None:
    x = torch.randn(6, 40) * 2 + 1
    quantizer = Case("lsq_plus", form="affine").calibrated(torch.tensor([[-0.3, 2.0]]))
    with torch.no_grad():
        quantizer.lo.sub_(0.021)  # not a whole number of steps
    scale, zero_point = (p.double().item() for p in quantizer.qparams())
    assert zero_point == -np.rint(quantizer.lo.item() / scale)
    values, y, g, dx = run(quantizer, x)
    lo = -zero_point * scale
    v = (values - lo) / scale
    assert np.array_equal(np.unique(np.clip(np.rint(v), 0, 15)), np.arange(16))
    np.testing.assert_allclose(y, np.clip(np.rint(v), 0, 15) * scale + lo, **close)
    inside = (v > 0) & (v < 15)
    np.testing.assert_allclose(dx, np.where(inside, g, 0), **close)
    dscale = np.where(inside, np.rint(v) - v, np.where(v <= 0, 0, 15))
    factor = 1 / np.sqrt(40 * 15)
    assert quantizer.scale.grad.item() == pytest.approx((g * dscale).sum() * factor, rel=1e-3)
    assert quantizer.lo.grad.item() == pytest.approx(g[~inside].sum() * factor, rel=1e-3)
    assert (v < 0).any()
    assert (v > 15).any()


def test_lsq_plus_learns_an_offset_that_min_max_missed() -> None:
    x = torch.nn.functional.silu(torch.randn(64, 50) * 2)
    quantizer = LSQPlus(QuantSpec(Grid(3, signed=False), symmetric=False))
    quantizer.set_range(torch.tensor([-3.0]), torch.tensor([3.0]))
    first = (quantizer(x) - x).square().mean().item()
    optimizer = torch.optim.Adam(quantizer.parameters(), lr=0.02)
    for _ in range(200):
        optimizer.zero_grad()
        (quantizer(x) - x).square().mean().backward()
        optimizer.step()
    assert (quantizer(x) - x).square().mean().item() < 0.5 * first
    scale, zero_point = quantizer.qparams()
    assert -2.5 < -(zero_point * scale).item() <= 0


# SAWB


@pytest.mark.parametrize("bits", sorted(COEFFICIENTS))
def test_the_coefficients_of_sawb_are_the_line_through_the_best_ranges(bits: int) -> None:
    np.testing.assert_allclose(COEFFICIENTS[bits], sawb.coefficients(2**bits - 1), rtol=1e-3)


@pytest.mark.parametrize(
    ("levels", "published"), [(4, (3.12, -2.064)), (3, (2.6, -1.71)), (15, (12.035, -12.03))], ids=["paper", "3", "15"]
)
def test_the_method_finds_the_published_coefficients(levels: int, published: tuple[float, float]) -> None:
    """4 levels: of the paper; 3 and 15, narrow grids of 2 and 4 bits: of the authors' later code."""
    np.testing.assert_allclose(sawb.coefficients(levels), published, rtol=0.05)


@layouts
def test_sawb(layout: str) -> None:
    quantizer, shared = Case("sawb", layout).calibrated(data()), LAYOUTS[layout][2](SHAPE)
    x, y, g, dx = run(quantizer, data())
    n = np.bincount(shared.ravel())
    mean, rms = summed(np.abs(x), shared) / n, np.sqrt(summed(x**2, shared) / n)
    c1, c2 = COEFFICIENTS[4]
    s = (np.maximum(c1 * rms + c2 * mean, mean) / 7)[shared]
    np.testing.assert_allclose(y, np.clip(np.rint(x / s), -7, 7) * s, **close)
    np.testing.assert_array_equal(dx, np.where(np.abs(x / s) < 7, g, 0))


@pytest.mark.parametrize("bits", sorted(COEFFICIENTS))
def test_sawb_reaches_weights_that_are_all_of_one_size(bits: int) -> None:
    weight = torch.tensor([[0.5, -0.5, 0.5]])
    quantizer = Case("sawb", "per_tensor", bits).rule.build((1, 3))
    quantizer.quantize(weight)
    assert quantizer.qparams().scale.item() * quantizer.spec.grid.qmax >= 0.5


def test_sawb_is_nearly_the_best_range_for_normal_weights() -> None:
    x = torch.randn(1, 20_000)
    quantizer = Case("sawb", "per_tensor", 2).rule.build((1, 20_000))
    quantizer.set_range(torch.tensor([-9.0]), torch.tensor([9.0]))
    error = (quantizer(x) - x).square().mean().item()
    best = min(((np.clip(np.rint(x.numpy() / s), -1, 1) * s - x.numpy()) ** 2).mean() for s in np.linspace(0.5, 3, 100))
    assert error < 1.02 * best


# Ternary and binary


@layouts
def test_ternary(layout: str) -> None:
    quantizer, shared = Case("ternary", layout, 2).calibrated(data()), LAYOUTS[layout][2](SHAPE)
    x, y, g, dx = run(quantizer, data())
    threshold = 0.7 * (summed(np.abs(x), shared) / np.bincount(shared.ravel()))[shared]
    kept = np.abs(x) > threshold
    scale = (summed(np.abs(x) * kept, shared) / summed(kept * 1.0, shared))[shared]
    np.testing.assert_allclose(y, np.sign(x) * kept * scale, **close)
    np.testing.assert_array_equal(dx, g)
    assert 0 < kept.mean() < 1


@layouts
def test_binary(layout: str) -> None:
    quantizer, shared = Case("binary", layout, 2).calibrated(data()), LAYOUTS[layout][2](SHAPE)
    x, y, g, dx = run(quantizer, data())
    n = np.bincount(shared.ravel())
    scale = (summed(np.abs(x), shared) / n)[shared]  # eq. 6
    np.testing.assert_allclose(y, scale * np.sign(x), **close)
    mean = (summed(g * np.sign(x), shared) / n)[shared]
    np.testing.assert_allclose(dx, g * scale * (np.abs(x) < 1) + np.sign(x) * mean, **close)


@pytest.mark.parametrize("cls", [Ternary, Binary])
def test_codes_and_scale_follow_the_weight_without_a_forward(cls: type[Quantizer]) -> None:
    quantizer = cls(QuantSpec(Grid(2, narrow=True)), (2, 3))
    quantizer.set_range(torch.tensor([-1.0]), torch.tensor([1.0]))
    codes = quantizer.quantize(torch.tensor([[4.0, -4.0, 4.0], [-4.0, 0.0, 4.0]]))
    assert codes.tolist() == [[1, -1, 1], [-1, 0 if cls is Ternary else 1, 1]]
    assert quantizer.qparams().scale.item() == pytest.approx(4.0 if cls is Ternary else 20 / 6)


# QIL


@tables
def test_qil(layout: str, form: str) -> None:
    quantizer, shared = Case("qil", layout, 4, form).calibrated(data()), LAYOUTS[layout][2](SHAPE)
    with torch.no_grad():
        quantizer.center.mul_(0.9)
        quantizer.distance.mul_(0.7)  # something is pruned and something is clipped
    x, y, g, dx = run(quantizer, data())
    qmax = quantizer.spec.grid.qmax
    c, d, hi = (
        number(quantizer.center, shared),
        number(quantizer.distance, shared),
        number(quantizer.scale, shared) * qmax,
    )
    x = table_input(quantizer, x) if layout == "activation" else x
    size, sign = np.abs(x), np.sign(x)
    inside = (size > c - d) & (size < c + d)
    stretched = np.where(size <= c - d, 0, np.where(size >= c + d, 1, 0.5 / d * size - 0.5 * c / d + 0.5))
    np.testing.assert_allclose(y, hi * sign * np.rint(qmax * stretched) / qmax, **close)
    np.testing.assert_allclose(dx, np.where(inside, g * hi * 0.5 / d, 0), **close)
    dcenter = summed(np.where(inside, -g * sign * hi * 0.5 / d, 0), shared)
    ddistance = summed(np.where(inside, -g * sign * hi * 0.5 * (size - c) / d**2, 0), shared)
    factor = 1 / np.sqrt(elements_per_scale(layout, shared) * qmax)
    np.testing.assert_allclose(quantizer.center.grad.numpy(), dcenter * factor, **close)
    np.testing.assert_allclose(quantizer.distance.grad.numpy(), ddistance * factor, **close)
    assert (size < c - d).any()
    assert (size > c + d).any()


def test_a_table_leaves_no_other_gradient_for_rounding() -> None:
    with pytest.raises(
        ValueError, match=r"QIL quantizes activations with a table, .* give an estimator to the weight only"
    ):
        QIL(QuantSpec(Grid(4, signed=False)), estimator=EWGS())
    assert isinstance(QIL(QuantSpec(Grid(4, narrow=True)), SHAPE, estimator=EWGS()).estimator, EWGS)


def test_qil_starts_as_plain_rounding() -> None:
    quantizer = QIL(QuantSpec(Grid(4, narrow=True)), SHAPE)
    quantizer.set_range(torch.tensor([-7.0]), torch.tensor([7.0]))
    x = torch.randn(SHAPE) * 3
    torch.testing.assert_close(quantizer(x), x.clamp(-7, 7).round())


# N2UQ


@layouts
def test_n2uq(layout: str) -> None:
    """The generalized straight-through estimator as in the authors' code: a loop over thresholds, for magnitudes."""
    quantizer, shared = Case("n2uq", layout, 3).calibrated(data()), LAYOUTS[layout][2](SHAPE)
    a = np.array([0.5, 1.6, 0.7])
    with torch.no_grad():
        quantizer.interval.copy_(torch.tensor(a))
    x, y, g, dx = run(quantizer, data())
    s = (4 * summed(np.abs(x), shared) / np.bincount(shared.ravel()) / 7)[shared]
    size, g_size = np.abs(x / s), g * s * np.sign(x)  # the gradient that comes to a magnitude
    codes, dsize, da, begin = np.zeros(SHAPE), np.zeros(SHAPE), np.zeros(3), 0.0
    for i in range(3):
        codes = np.where(size > begin + a[i] / 2, i + 1, codes)
        here = (size >= begin) & (size < begin + a[i])
        dsize += here * g_size / a[i]
        da[:i] -= (here * g_size / a[i]).sum()
        da[i] -= (here * g_size * (size - begin) / a[i] ** 2).sum()
        begin += a[i]
    np.testing.assert_allclose(y, np.sign(x) * codes * s, **close)
    np.testing.assert_allclose(dx, dsize * np.sign(x) / s, **close)
    np.testing.assert_allclose(quantizer.interval.grad.numpy(), da / np.sqrt(x.size * 3), **close)
    assert set(codes.ravel()) == {0, 1, 2, 3}
    assert (size > begin).any()


@pytest.mark.parametrize("form", ["unsigned", "full"])
def test_n2uq_of_an_activation(form: str) -> None:
    quantizer = Case("n2uq", "activation", 4 if form == "full" else 2, form).calibrated(0.3 * data())
    qmax = quantizer.spec.grid.qmax
    a = np.array([0.5, 1.6, 0.7, 1.0, 0.3, 1.2, 0.9])[:qmax]
    with torch.no_grad():
        quantizer.interval.copy_(torch.tensor(a))
    x, y, g, dx = run(quantizer, data())
    s, x = quantizer.scale.item(), table_input(quantizer, x)
    ends = np.concatenate([[0], np.cumsum(a)])
    size, sign = np.abs(x / s), np.sign(x)
    code = sign * np.searchsorted((ends[1:] + ends[:-1]) / 2, size)
    inside = (size < ends[-1]) & ((form == "full") | (x > 0))
    segment = np.clip(np.searchsorted(ends, size) - 1, 0, qmax - 1)
    slope = inside / a[segment]
    np.testing.assert_allclose(y, code * s, **close)
    np.testing.assert_allclose(dx, g * slope, **close)
    da = [
        (-g * s * sign * slope * np.where(segment == i, (size - ends[segment]) / a[segment], segment > i)).sum()
        for i in range(qmax)
    ]
    factor = 1 / np.sqrt(12 * qmax)
    np.testing.assert_allclose(quantizer.interval.grad.numpy(), np.array(da) * factor, rtol=1e-3, atol=1e-4)
    dscale = (g * (code - x / s * slope)).sum() * factor
    np.testing.assert_allclose(quantizer.scale.grad.item(), dscale, **close)
    assert (size > ends[-1]).any()


def test_n2uq_starts_as_plain_rounding_with_all_codes_in_use() -> None:
    weight = torch.rand(1, 7000) * 2 - 1
    quantizer = Case("n2uq", "per_tensor", 3).rule.build((1, 7000))
    codes = quantizer.quantize(weight)
    np.testing.assert_array_equal(codes, (weight / quantizer.qparams().scale).round().clamp(-3, 3))
    assert np.bincount(codes.flatten().long() + 3).min() > 900  # seven codes: 1000 each


def test_n2uq_lengths_below_the_floor_count_as_the_floor_and_learn() -> None:
    quantizer, x = Case("n2uq", "per_tensor", 2).calibrated(data()), 1e-4 * data()
    x[0, 0, 0, 0] = 20.0  # the others lie within the first segment, or little beyond
    with torch.no_grad():
        quantizer.interval.fill_(-1.0)
    _, y, _, dx = run(quantizer, x)
    assert quantizer.interval.grad.abs() > 0
    with torch.no_grad():
        quantizer.interval.fill_(2.0**-10)
    np.testing.assert_array_equal(quantizer(x).detach(), y)
    assert {0.0, quantizer.qparams().scale.item()} == set(np.unique(np.abs(y)))
    assert (dx != 0).any()


# Codebooks


def test_levels_are_those_of_the_papers() -> None:
    def levels(name: str, bits: int) -> list[float]:
        return Case(name, "per_channel", bits).build().levels().tolist()

    assert levels("powers_of_two", 3) == [-4, -2, -1, 0, 1, 2, 4]
    assert levels("powers_of_two", 4) == sorted([0, *(s * 2**k for s in (-1, 1) for k in range(7))])
    # one summand out of each group, as fractions, in the authors' code (Li et al. 2020)
    four = {16 * (a + b) for a in (0, 1 / 2, 1 / 4, 1 / 16) for b in (0, 1 / 8)}
    five = {64 * (a + b) for a in (0, 2**-1, 2**-3, 2**-5) for b in (0, 2**-2, 2**-4, 2**-6)}
    assert levels("apot", 4) == sorted(four | {-m for m in four})
    assert Case("apot", "activation", 4, "unsigned").build().levels().tolist() == sorted(
        64 * (a + b) for a in (0, 2**-1, 2**-3, 2**-5) for b in (0, 2**-2, 2**-4, 2**-6)
    )
    assert Case("apot", "activation", 2, "unsigned").build().levels().tolist() == [0, 1, 2, 4]
    assert levels("apot", 5) == sorted(five | {-m for m in five})
    assert all(2 ** (bits - 1) == 1 + sum(level > 0 for level in levels("apot", bits)) for bits in TERMS)
    np.testing.assert_allclose(np.array(levels("nf4", 4)) / 127, NORMAL_FLOAT, atol=0.5 / 127)


def test_normal_float_levels_are_means_of_quantiles_of_a_normal_distribution() -> None:
    icdf = torch.distributions.Normal(0.0, 1.0).icdf
    offset = 0.9677083  # 1 / 2 * (1 - 1 / 32 + 1 - 1 / 30), of the authors' code
    upper = icdf(torch.linspace(offset, 0.5, 9, dtype=torch.float64))[:-1]
    lower = -icdf(torch.linspace(offset, 0.5, 8, dtype=torch.float64))[:-1]
    levels = torch.cat([lower, torch.zeros(1), upper]).sort().values
    np.testing.assert_allclose(NORMAL_FLOAT, levels / levels.max(), atol=1e-5)


@pytest.mark.parametrize(
    ("name", "layout", "form"),
    [
        *product(("powers_of_two", "apot", "nf4", "k_means"), ("per_tensor", "per_channel", "per_group"), ("signed",)),
        *product(("apot",), ("activation",), ("unsigned", "full")),
    ],
)
def test_a_codebook(name: str, layout: str, form: str) -> None:
    quantizer, shared = Case(name, layout, 4, form).calibrated(data()), LAYOUTS[layout][2](SHAPE)
    with torch.no_grad():
        quantizer.scale.mul_(0.6)  # something is clipped
    x, y, g, dx = run(quantizer, data())
    x = table_input(quantizer, x) if layout == "activation" else x
    levels, s = np.unique(quantizer.levels().detach().double().numpy()), number(quantizer.scale, shared)
    chosen = levels[np.abs((x / s)[..., None] - levels).argmin(axis=-1)]
    np.testing.assert_allclose(y, chosen * s, **close)
    inside = (x / s > levels[0]) & (x / s < levels[-1])
    np.testing.assert_allclose(dx, np.where(inside, g, 0), **close)
    dscale = summed(g * np.where(inside, chosen - x / s, chosen), shared)
    uniform = 15 if form == "unsigned" else 7
    factor = (uniform / np.abs(levels).max()) ** 2 / np.sqrt(elements_per_scale(layout, shared) * uniform)
    np.testing.assert_allclose(quantizer.scale.grad.numpy(), dscale * factor, **close)
    assert 0 < inside.mean() < 1


def test_the_gradient_of_a_learned_level_is_the_sum_over_its_weights() -> None:
    quantizer = Case("k_means", "per_tensor", 2).calibrated(data())
    x, _, g, _ = run(quantizer, data())
    scale = quantizer.scale.item()
    levels = quantizer.levels().detach().double().numpy()
    chosen = np.abs((x / scale)[..., None] - levels).argmin(axis=-1)
    expected = summed(g, chosen) * scale * 127 / np.sqrt(x.size)  # a unit of the parameter is 127 codes
    order = quantizer.codebook.detach().argsort()
    np.testing.assert_allclose(quantizer.codebook.grad[order].numpy(), expected, **close)


def test_learned_levels_may_change_places() -> None:
    """A weight gets the nearest level, however the levels lie in the parameter."""
    x = data()
    quantizer = Case("k_means", "per_tensor", 2).calibrated(x)
    before = quantizer(x).detach()
    with torch.no_grad():
        quantizer.codebook.copy_(quantizer.codebook.flip(0)[[1, 0, 3, 2]])
    assert torch.equal(quantizer(x), before)


def test_k_means_finds_the_clusters_of_the_weights() -> None:
    centers = torch.tensor([-1.0, -0.2, 0.3, 0.8])
    weight = (centers[torch.randint(4, (8, 50))] + 0.01 * torch.randn(8, 50)).clamp(-1, 1)
    rule = Case("k_means", "per_tensor", 2).rule
    quantizer = rule.build((8, 50))
    assert isinstance(quantizer, KMeans)
    calibrate(quantizer, weight)
    np.testing.assert_allclose(quantizer(weight).detach().unique().numpy(), centers.numpy(), atol=0.02)


@tables
def test_lcq(layout: str, form: str) -> None:
    """Forward and gradients of weight and scale by the paper's formulas; that of theta by differences of its straight line."""
    bits = 3 if form == "signed" else 4
    quantizer, shared = Case("lcq", layout, bits, form).calibrated(data()), LAYOUTS[layout][2](SHAPE)
    qmax, top = 2 ** (bits - (form != "unsigned")) - 1, 255 if form == "unsigned" else 127
    theta = 2.0 * np.random.default_rng(0).normal(size=16).clip(-1, 1)
    with torch.no_grad():
        quantizer.theta.copy_(torch.tensor(theta))
        quantizer.scale.mul_(0.6)  # something is clipped
    x, y, g, dx = run(quantizer, data())
    x = table_input(quantizer, x) if layout == "activation" else x
    knots, s = np.linspace(0, 1, 17), number(quantizer.scale, shared)

    def heights(theta: Array) -> Array:
        return np.concatenate([[0], np.cumsum(np.exp(theta))]) / np.exp(theta).sum()

    def f(u: Array, theta: Array) -> Array:
        return np.interp(u, knots, heights(theta))

    def expand(q: Array, theta: Array) -> Array:
        rise = np.diff(heights(theta))[[0, -1]] * 16  # the outer pieces go on straight
        around = np.concatenate([[-rise[0]], heights(theta), [1 + rise[1]]])
        return np.interp(q, around, np.concatenate([[-1], knots, [2]]))

    u = np.abs(x / s).clip(0, top) / top
    q = np.rint(qmax * f(u, theta)) / qmax
    level = np.sign(x) * np.rint(top * expand(q, theta))
    np.testing.assert_allclose(y, level * s, **close)
    inside = (np.abs(x / s) < top) & ((form != "unsigned") | (x > 0))
    slopes = np.diff(heights(theta)) * 16
    at_level = np.clip(np.searchsorted(heights(theta), q + 1e-9) - 1, 0, 15)
    slope = slopes[np.clip((u * 16).astype(int), 0, 15)] / slopes[at_level]
    np.testing.assert_allclose(dx, np.where(inside, g * slope, 0), **close)
    dscale = summed(g * np.where(inside, level - x / s * slope, level), shared)
    factor = (qmax / top) ** 2 / np.sqrt(elements_per_scale(layout, shared) * qmax)
    np.testing.assert_allclose(quantizer.scale.grad.numpy(), dscale * factor, **close)

    def line(theta_: Array) -> float:
        return float((g * np.sign(x) * s * top * expand(q + f(u, theta_) - f(u, theta), theta_)).sum())

    e = 1e-6 * np.eye(16)
    expected = [(line(theta + step) - line(theta - step)) / 2e-6 for step in e]
    np.testing.assert_allclose(quantizer.theta.grad.numpy(), expected, rtol=2e-3, atol=1e-3)
    assert 0 < inside.mean() < 1
    assert len(np.unique(level)) >= 5


def test_lcq_starts_as_plain_rounding_and_learns_where_the_weights_are() -> None:
    weight = 0.1 * torch.randn(20, 200)
    weight[0, 0] = 1.0
    quantizer = Case("lcq", "per_tensor", 3).rule.build((20, 200))
    quantizer.set_range(torch.tensor([-1.0]), torch.tensor([1.0]))
    assert quantizer.levels().tolist() == [-127, -85, -42, 0, 42, 85, 127]
    first = (quantizer(weight) - weight).square().mean().item()
    optimizer = torch.optim.Adam([quantizer.theta], lr=0.05)
    for _ in range(100):
        optimizer.zero_grad()
        (quantizer(weight) - weight).square().mean().backward()
        optimizer.step()
    assert (quantizer(weight) - weight).square().mean().item() < 0.3 * first
    assert quantizer.levels()[4] < 25


@pytest.mark.parametrize("cls", [PowersOfTwo, APoT])
def test_other_widths_are_refused(cls: type[Quantizer]) -> None:
    with pytest.raises(ValueError, match=rf"{cls.__name__} has 2 or .* bits, not 8: write bits: 4, or give this layer"):
        cls(QuantSpec(Grid(8, narrow=True)), SHAPE)


# Learned ranges


@pytest.mark.parametrize(
    "name",
    ["lsq", "ewgs", "dsq", "stochastic", "pact", "tqt", "lsq_plus", "powers_of_two", "apot", "nf4", "k_means", "lcq"],
)
def test_a_range_that_is_too_narrow_widens(name: str) -> None:
    x = torch.randn(8, 200)
    quantizer = Case(name, "per_tensor").rule.build((8, 200))
    quantizer.set_range(torch.tensor([-0.5]), torch.tensor([0.5]))
    first = (quantizer.eval()(x) - x).square().mean().item()
    optimizer = torch.optim.Adam(quantizer.train().parameters(), lr=0.02)
    for _ in range(150):
        optimizer.zero_grad()
        (quantizer(x) - x).square().mean().backward()
        optimizer.step()
    assert (quantizer.eval()(x) - x).square().mean().item() < 0.2 * first


@pytest.mark.parametrize("name", ["qil", "n2uq", "apot", "lcq"])
def test_an_activation_that_is_looked_up_learns_its_range_and_its_steps(name: str) -> None:
    x = torch.randn(8, 200).relu() ** 2  # most values are small
    quantizer = Case(name, "activation", 3, "unsigned").rule.build()
    quantizer.set_range(torch.tensor([0.0]), torch.tensor([0.3]))
    before = [p.detach().clone() for p in quantizer.parameters()]
    worker_process = torch.nn.Parameter(torch.ones(()))  # QIL's own range is fixed; what follows scales
    first = (quantizer(x) - x).square().mean().item()
    optimizer = torch.optim.Adam([worker_process, *quantizer.parameters()], lr=0.04)
    for _ in range(200):
        optimizer.zero_grad()
        (worker_process * quantizer(x) - x).square().mean().backward()
        optimizer.step()
    reached = 0.6 if name == "qil" else 0.1  # clipped values say nothing to QIL's interval
    assert (worker_process * quantizer(x) - x).square().mean().item() < reached * first
    assert all(not torch.equal(p, q) for p, q in zip(before, quantizer.parameters(), strict=True))
    assert len(quantizer(x).unique()) > 5
