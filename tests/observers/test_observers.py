"""What every observer promises, for every class that `qat.observers` exports."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import qat.observers
from qat import Grid, PerChannel, QuantSpec
from qat.observers import KL, MSE, MeanAbs, MinMax, MovingAverage, Observer, Percentile
from qat.observers.search import search
from tests.oracles.fake_quantize import forward, per_channel

CLASSES = [getattr(qat.observers, name) for name in qat.observers.__all__ if name != "Observer"]
SPECS = {
    "signed": QuantSpec(Grid(4, narrow=True), PerChannel()),
    "unsigned": QuantSpec(Grid(4, signed=False), PerChannel()),
    "affine": QuantSpec(Grid(4, signed=False), PerChannel(), symmetric=False),
}
SYMMETRIC_ONLY = (MeanAbs,)
every = pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
pairs = pytest.mark.parametrize(
    ("cls", "spec"),
    [
        pytest.param(cls, spec, id=f"{cls.__name__}-{name}")
        for cls in CLASSES
        for name, spec in SPECS.items()
        if spec.symmetric or cls not in SYMMETRIC_ONLY
    ],
)


def data(rows: int = 3, n: int = 600) -> Tensor:
    """Rows of very different size, skewed to the right, with outliers."""
    x = torch.randn(rows, n) + 0.3 * torch.randn(rows, n).square()
    x[:, ::97] *= 4
    return x * torch.logspace(-3, 2, rows)[:, None]


def seen(observer: Observer, *batches: Tensor) -> tuple[Tensor, Tensor]:
    for batch in batches:
        observer.update(batch)
    return observer.range()


def same(a: tuple[Tensor, Tensor], b: tuple[Tensor, Tensor], rtol: float = 1e-6) -> None:
    torch.testing.assert_close(a, b, rtol=rtol, atol=0.0)


def mse(x: Tensor, spec: QuantSpec, lo: Tensor, hi: Tensor) -> np.ndarray:
    """Mean squared error of each row, by the numpy oracle."""
    return squared_error(x, spec, lo, hi).mean(axis=1)


def squared_error(x: Tensor, spec: QuantSpec, lo: Tensor, hi: Tensor) -> np.ndarray:
    """Squared error of each value, by the numpy oracle."""
    scale, zero_point = (p.numpy() for p in spec.qparams(lo, hi))
    y = forward(x.numpy(), scale, zero_point, spec.grid.qmin, spec.grid.qmax, per_channel(tuple(x.shape)))
    return (y.astype(np.float64) - x.numpy()) ** 2


@pairs
def test_the_range_is_usable(cls: Callable[..., Observer], spec: QuantSpec) -> None:
    lo, hi = seen(cls(spec), data())
    assert lo.shape == hi.shape == (3,)
    assert lo.dtype == hi.dtype == torch.float32
    assert (lo <= hi).all()
    x = data()
    signal = x.square().mean(dim=1) if spec.grid.signed or not spec.symmetric else x.relu().square().mean(dim=1)
    error = mse(x if spec.grid.signed or not spec.symmetric else x.relu(), spec, lo, hi)
    assert (error < 0.25 * signal.numpy()).all()  # a sensible guess, whatever the grid


@pairs
def test_rows_share_nothing(cls: Callable[..., Observer], spec: QuantSpec) -> None:
    x = data()
    lo, hi = seen(cls(spec), x[:, :300], x[:, 300:])
    for i, row in enumerate(x):
        alone = seen(cls(spec), row[None, :300], row[None, 300:])
        same((lo[i : i + 1], hi[i : i + 1]), alone)


@pairs
def test_the_order_and_the_batches_do_not_matter(cls: type[Observer], spec: QuantSpec) -> None:
    if cls.depends_on_batches:
        pytest.skip("documented: depends on order and batches")
    x = data()
    once = seen(cls(spec), x)
    shuffled = x[:, torch.randperm(x.shape[1])]
    same(seen(cls(spec), *shuffled.split(41, dim=1)), once)
    same(seen(cls(spec), *reversed(x.split(50, dim=1))), once)


@pairs
def test_merging_two_halves_is_seeing_all(cls: type[Observer], spec: QuantSpec) -> None:
    if cls.depends_on_batches:
        pytest.skip("documented: depends on order and batches")
    x = data()
    x[:, 300:] *= 10  # the halves differ
    everything = seen(cls(spec), x)
    for first, second in ((x[:, :300], x[:, 300:]), (x[:, 300:], x[:, :300])):
        one, other = cls(spec), cls(spec)
        seen(one, first), seen(other, second)
        one.merge(other)
        same(one.range(), everything)


@every
def test_merging_with_one_that_saw_nothing(cls: Callable[..., Observer]) -> None:
    x, spec = data(), SPECS["signed"]
    expected = seen(cls(spec), x)
    one, empty = cls(spec), cls(spec)
    one.update(x)
    one.merge(empty)
    same(one.range(), expected)
    empty.merge(one)
    same(empty.range(), expected)
    neither = cls(spec)
    neither.merge(cls(spec))
    with pytest.raises(RuntimeError, match="has seen no data"):
        neither.range()


@every
def test_merging_leaves_the_other_as_it_was(cls: Callable[..., Observer]) -> None:
    x, spec = data(), SPECS["signed"]
    one, other = cls(spec), cls(spec)
    other.update(x)
    expected = other.range()
    one.merge(other)
    one.update(100 * x)
    same(other.range(), expected, rtol=0.0)


@every
def test_the_first_batch_still_counts_after_the_last(cls: Callable[..., Observer]) -> None:
    x, spec = data(), SPECS["signed"]
    last_only = seen(cls(spec), 0.01 * x)[1]
    assert (seen(cls(spec), x, 0.01 * x)[1] > 5 * last_only).all()


@pairs
@pytest.mark.parametrize("exponent", [-40, 100, 116])
def test_the_unit_of_the_data_does_not_matter(cls: Callable[..., Observer], spec: QuantSpec, exponent: int) -> None:
    x, unit = data(), 2.0**exponent
    (lo, hi), (small_lo, small_hi) = seen(cls(spec), x * unit), seen(cls(spec), x)
    assert torch.equal(lo, small_lo * unit)
    assert torch.equal(hi, small_hi * unit)


@every
def test_reset_forgets(cls: Callable[..., Observer]) -> None:
    x, spec = data(), SPECS["signed"]
    observer = cls(spec)
    observer.update(1000 * x)
    observer.reset()
    with pytest.raises(RuntimeError, match=rf"{cls.__name__} has seen no data: call update\(x\), or qat.calibrate"):
        observer.range()
    same(seen(observer, x), seen(cls(spec), x), rtol=0.0)


@every
def test_half_precision_data_gives_a_float32_range(cls: Callable[..., Observer]) -> None:
    x = data().bfloat16()
    same(seen(cls(SPECS["signed"]), x), seen(cls(SPECS["signed"]), x.float()), rtol=0.0)


@every
def test_data_is_not_changed(cls: Callable[..., Observer]) -> None:
    x = data()
    before = x.clone()
    seen(cls(SPECS["signed"]), x)
    assert torch.equal(x, before)


@every
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_nan_and_infinity_end_in_the_message_of_the_spec(cls: Callable[..., Observer], bad: float) -> None:
    x = data()
    x[1, 5] = bad
    spec, observer = SPECS["signed"], cls(SPECS["signed"])
    with pytest.raises(ValueError, match="not finite"):
        spec.qparams(*seen(observer, data(), x, data()))


@every
def test_a_dead_row_has_an_empty_range(cls: Callable[..., Observer]) -> None:
    x, spec = data(), SPECS["signed"]
    x[1] = 0.0
    lo, hi = seen(cls(spec), x)
    assert lo[1] == hi[1] == 0.0
    assert (spec.qparams(lo, hi).scale > 0).all()


def test_min_max_is_the_range_of_numpy() -> None:
    x = data()
    lo, hi = seen(MinMax(SPECS["signed"]), *x.split(100, dim=1))
    assert np.array_equal(lo, x.numpy().min(axis=1))
    assert np.array_equal(hi, x.numpy().max(axis=1))


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("signed", [True, False], ids=["signed", "unsigned"])
def test_mean_abs_gives_the_initial_scale_of_lsq(bits: int, signed: bool) -> None:
    spec = QuantSpec(Grid(bits, signed, narrow=signed), PerChannel())
    x = data()
    expected = 2 * np.abs(x.numpy().astype(np.float64)).mean(axis=1) / np.sqrt(spec.grid.qmax)
    scale = spec.qparams(*seen(MeanAbs(spec), *x.split([100, 500], dim=1))).scale  # unequal batches
    np.testing.assert_allclose(scale, expected, rtol=1e-6)


def test_mean_abs_refuses_an_affine_spec() -> None:
    """Its range is [0, hi] there: every negative value would be clipped."""
    with pytest.raises(ValueError, match=r"MeanAbs finds a scale but no zero-point: write symmetric"):
        MeanAbs(SPECS["affine"])


def test_moving_average_formula_and_order() -> None:
    a, b, c = (torch.tensor([[-1.0, 2.0]]), torch.tensor([[-3.0, 1.0]]), torch.tensor([[0.0, 8.0]]))
    lo, hi = seen(MovingAverage(SPECS["signed"], momentum=0.75), a, b, c)
    assert lo.item() == pytest.approx(0.75 * (0.75 * -1 + 0.25 * -3))
    assert hi.item() == pytest.approx(0.75 * (0.75 * 2 + 0.25 * 1) + 0.25 * 8)
    assert seen(MovingAverage(SPECS["signed"], momentum=0.75), c, b, a)[1] != hi


def test_merge_of_moving_averages_weighs_by_batches() -> None:
    one, other = MovingAverage(SPECS["signed"]), MovingAverage(SPECS["signed"])
    seen(one, *[torch.tensor([[-1.0, 1.0]])] * 3), seen(other, torch.tensor([[-5.0, 9.0]]))
    one.merge(other)
    assert (one.range()[0].item(), one.range()[1].item()) == (pytest.approx(-2.0), pytest.approx(3.0))
    assert one.batches == 4


@pytest.mark.parametrize("percentile", [90.0, 99.0, 99.9, 100.0])
@pytest.mark.parametrize("kind", SPECS)
def test_percentile_is_that_of_numpy_up_to_a_bin(percentile: float, kind: str) -> None:
    spec, x = SPECS[kind], data(n=19_999)
    lo, hi = seen(Percentile(spec, percentile), *x.split(3000, dim=1))
    rest = 100 - percentile
    ends = (100 - rest, 0) if kind == "unsigned" else (100 - rest / 2, rest / 2)
    reach = 2 ** np.ceil(np.log2(x.abs().amax(dim=1).numpy()))
    width = 2 * reach / Percentile.BINS
    high, low = (np.percentile(x.numpy(), end, axis=1, method="inverted_cdf") for end in ends)
    assert (np.abs(hi.numpy() - high) <= 1.01 * width).all()
    if kind != "unsigned":
        assert (np.abs(lo.numpy() - low) <= 1.01 * width).all()
    if percentile == 100.0:
        same((lo, hi), seen(MinMax(spec), x), rtol=0.0)


def test_percentile_100_keeps_the_largest_of_very_many_values() -> None:
    observer = Percentile(SPECS["signed"], 100.0)
    observer.update(torch.tensor([[-1.0, 0.1, 1.9]]))
    counts = observer.counts
    assert counts is not None
    counts[counts.cumsum(1) == 2] *= 2**26  # as if 0.1 had come 67 million times
    assert observer.range()[1].item() == pytest.approx(1.9)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("kind", SPECS)
def test_mse_is_never_worse_than_min_max(bits: int, kind: str) -> None:
    form = SPECS[kind]
    grid = Grid(bits, form.grid.signed, form.grid.narrow)
    spec = QuantSpec(grid, PerChannel(), form.symmetric)
    x = data(n=3000)
    searched = mse(x, spec, *seen(MSE(spec), *x.split(500, dim=1)))
    full = mse(x, spec, *seen(MinMax(spec), x))
    reach = 2 ** np.ceil(np.log2(x.abs().amax(dim=1).numpy()))
    width = 2 * reach / MSE.BINS
    assert (np.sqrt(searched) <= np.sqrt(full) + width).all()
    if bits < 8 and kind != "unsigned":
        assert (searched < 0.9 * full).all()  # with outliers, it finds something better


@pytest.mark.parametrize("bits", [2, 4])
@pytest.mark.parametrize("kind", ["signed", "unsigned"])
def test_mse_is_close_to_the_best_of_a_brute_force_search(bits: int, kind: str) -> None:
    grid = Grid(bits, SPECS[kind].grid.signed, SPECS[kind].grid.narrow)
    spec, x = QuantSpec(grid, PerChannel()), data(n=2000)
    found = mse(x, spec, *seen(MSE(spec), *x.split(333, dim=1)))
    reach = x.abs().amax(dim=1)
    best = np.min([mse(x, spec, -reach * f, reach * f) for f in np.linspace(0.002, 1, 500)], axis=0)
    assert (found <= 1.02 * best).all()


def test_affine_mse_is_close_to_the_best_of_a_brute_force_search() -> None:
    spec, x = SPECS["affine"], data(rows=2, n=1000)
    found = mse(x, spec, *seen(MSE(spec), x))
    lo, hi = x.amin(dim=1), x.amax(dim=1)
    fractions = np.linspace(0.04, 1, 25)
    best = np.min([mse(x, spec, lo * f, hi * g) for f in fractions for g in fractions], axis=0)
    assert (found <= 1.1 * best).all()


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("kind", SPECS)
def test_the_cumulative_sums_of_mse_are_the_error_of_every_bin(bits: int, kind: str) -> None:
    form = SPECS[kind]
    spec = QuantSpec(Grid(bits, form.grid.signed, form.grid.narrow), PerChannel(), form.symmetric)
    observer = MSE(spec, candidates=12)
    x = data()
    found = seen(observer, x)
    counts, centers = observer.counts, observer.centers()
    assert counts is not None

    def error(lo: Tensor, hi: Tensor) -> np.ndarray:
        return (squared_error(centers, spec, lo, hi) * counts.numpy()).sum(axis=1)

    lo, hi, fractions = x.amin(dim=1), x.amax(dim=1), torch.arange(1, 13) / 12
    reach = torch.maximum(-lo, hi) if spec.grid.signed else hi
    tried = [error(-reach * f, reach * f) if spec.symmetric else error(lo * f, found[1]) for f in fractions]
    best = fractions[np.argmin(tried, axis=0)]
    same(found, (-reach * best, reach * best) if spec.symmetric else (lo * best, found[1]))
    assert bits == 8 or (best < 1).any()
    below = tuple(nn.functional.pad(t.double().cumsum(dim=1), (1, 0)) for t in (counts, counts * centers.double()))
    for shrunk in (1.0, 0.37):
        whole = observer._error(below, lo * shrunk, hi * shrunk) + (counts * centers.double().square()).sum(dim=1)
        np.testing.assert_allclose(whole.numpy(), error(lo * shrunk, hi * shrunk), rtol=1e-6)


@pytest.mark.parametrize(("bits", "n"), [(2, 400), (8, 400), (4, 32), (8, 128), (3, 129), (4, 1)])
@pytest.mark.parametrize("kind", SPECS)
def test_the_compiled_search_finds_what_the_other_finds(
    bits: int, n: int, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    form = SPECS[kind]
    spec = QuantSpec(Grid(bits, form.grid.signed, form.grid.narrow), PerChannel(), form.symmetric)
    x = data(rows=6, n=n)
    x[2], x[3, ::2] = 0.0, x[3, 0]
    compiled, split = seen(MSE(spec), x), seen(MSE(spec), x, x)
    one = seen(MSE(spec), x[:1])
    for module in ("mse", "histogram"):
        monkeypatch.setattr(f"qat.observers.{module}.range_kernels", lambda: None)
    for found, rows in ((compiled, x), (split, torch.cat([x, x], 1)), (one, x[:1])):
        same(found, seen(MSE(spec), rows), rtol=0.0)


def test_the_search_takes_both_ends_in_turn_and_the_widest_of_equals() -> None:
    spec, one = SPECS["affine"], torch.ones(1)

    def valley(lo: Tensor, hi: Tensor) -> Tensor:
        return ((hi + lo).square() + 0.1 * (lo + 0.2).square()).double()

    assert [end.item() for end in search(spec, -one, one, valley, 10)] == pytest.approx([-0.8, 0.9])
    assert [end.item() for end in search(spec, -one, one, lambda lo, _: 0 * lo.double(), 10)] == [-1.0, 1.0]


def test_mse_of_an_unsigned_grid_searches_what_it_can_hold() -> None:
    spec, x = SPECS["unsigned"], torch.cat([torch.linspace(-1, 0, 50), torch.linspace(0, 0.055, 500)])[None]
    positive = x.clamp(min=0)
    searched = mse(positive, spec, *seen(MSE(spec), x))
    assert (searched <= mse(positive, spec, *seen(MinMax(spec), x)) * 1.05).all()


def divergence(counts: np.ndarray, centers: np.ndarray, spec: QuantSpec, reach: float) -> float:
    """KL(P || Q) of one candidate, bin by bin: P clipped, Q spread evenly over the bins of its code that P occupies."""
    scale = reach / spec.grid.qmax
    lowest = -spec.grid.qmax - 0.5 if spec.grid.signed else -0.5
    steps = centers / scale
    inside = np.flatnonzero((steps > lowest) & (steps < spec.grid.qmax + 0.5))
    if not counts[inside].any():
        return float("inf")
    p = np.zeros(len(counts))
    p[inside] = counts[inside]
    p[inside[0]] += counts[: inside[0]].sum()
    p[inside[-1]] += counts[inside[-1] + 1 :].sum()
    codes, q = np.rint(steps), np.zeros(len(counts))
    for code in np.unique(codes[inside]):
        bins = [i for i in inside if codes[i] == code]
        full = [i for i in bins if p[i] > 0]
        q[full] = sum(counts[i] for i in bins) / max(len(full), 1)
    p, q = p / p.sum(), q / q.sum()
    if ((p > 0) & (q == 0)).any():
        return float("inf")
    return float(sum(p[i] * np.log(p[i] / q[i]) for i in np.flatnonzero(p)))


def away_from_zero() -> Tensor:
    """As behind a sigmoid or a bias: the smallest candidates hold nothing."""
    return 1.3 - torch.randn(1, 50_000).abs().mul(0.25).clamp(max=1.0)


@pytest.mark.parametrize("kind", ["signed", "unsigned", "away_from_zero", "negative"])
def test_kl_finds_the_smallest_divergence_of_its_candidates(kind: str) -> None:
    spec, x = SPECS["unsigned" if kind in ("unsigned", "away_from_zero") else "signed"], data(rows=1, n=50_000)
    x = {"unsigned": x.relu(), "away_from_zero": away_from_zero(), "negative": -away_from_zero()}.get(kind, x)
    observer = KL(spec, candidates=20)
    found = seen(observer, *x.split(20_000, dim=1))[1].item()
    reach = float(2 ** np.ceil(np.log2(x.abs().max().item())))
    counts, edges = np.histogram(x.numpy(), bins=KL.BINS, range=(-reach, reach))
    middle = KL.BINS // 2
    counts[middle] = counts[middle + 1]  # zeros do not count
    if kind == "unsigned":
        counts[:middle] = 0
    largest = x.abs().max().item()
    tried = {k: divergence(counts, (edges[:-1] + edges[1:]) / 2, spec, largest * k / 20) for k in range(1, 21)}
    assert found == pytest.approx(largest * min(tried, key=tried.__getitem__) / 20, rel=1e-5)
    if kind in ("signed", "unsigned"):
        assert 0.1 * largest < found < 0.9 * largest  # neither end of the search
    else:
        assert found > x.abs().median()


def test_kl_of_an_unsigned_grid_does_not_look_at_negative_values() -> None:
    x = data(rows=1, n=5000).relu()
    both = torch.cat([x, -0.5 * x.max() * torch.rand(1, 20_000)], dim=1)
    assert torch.equal(seen(KL(SPECS["unsigned"]), x)[1], seen(KL(SPECS["unsigned"]), both)[1])


def test_kl_does_not_mind_how_many_zeros_there_are() -> None:
    x = data(rows=1, n=5000).relu()
    more = torch.cat([x, torch.zeros(1, 50_000)], dim=1)
    assert torch.equal(seen(KL(SPECS["unsigned"]), x)[1], seen(KL(SPECS["unsigned"]), more)[1])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda spec: KL(spec, candidates=0),
            "candidates=0 is not possible: write a whole number, 1 or more, such as 100",
        ),
        (
            lambda spec: MSE(spec, candidates=0),
            "candidates=0 is not possible: write a whole number, 1 or more, such as 100",
        ),
        (lambda spec: Percentile(spec, 50.0), r"percentile=50.0 must lie in \(50, 100\]: write for example 99.99"),
        (lambda spec: Percentile(spec, 100.1), r"percentile=100.1 must lie in"),
        (lambda spec: MovingAverage(spec, 1.0), r"momentum=1.0 of MovingAverage must lie in \[0, 1\): write"),
    ],
    ids=["kl", "mse", "percentile", "percentile_high", "moving_average"],
)
def test_impossible_options_say_what_to_write(make: Callable[[QuantSpec], Observer], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(SPECS["signed"])
