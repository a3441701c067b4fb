"""What every quantizer promises, for every file in `configs/quantizer/`."""

import copy
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

import qat.estimators
import qat.quantizers
from qat import Mode, QParams
from qat.functional import dequantize
from qat.observers import MSE, MeanAbs, MinMax
from qat.quantizers import Dynamic, Quantizer, ScaledFloat
from qat.quantizers.codebook import Codebook
from qat.quantizers.weight_statistics import WeightStatisticsQuantizer
from tests.quantizers.catalogue import (
    ACTIVATIONS,
    CASES,
    LAYOUTS,
    OF_FORMATS,
    OF_TOKENS,
    ONE_OF_EACH,
    PARTS,
    REFUSED,
    SHAPE,
    WEIGHTS,
    Case,
    assert_float32_maths,
    calibrate,
    data,
    on_grid,
)

everywhere = pytest.mark.parametrize("case", CASES, ids=str)
each = pytest.mark.parametrize("case", ONE_OF_EACH, ids=str)
weights = pytest.mark.parametrize("case", WEIGHTS, ids=str)
waiting = pytest.mark.parametrize("case", [c for c in ONE_OF_EACH if not isinstance(c.build(), Dynamic)], ids=str)


def test_every_class_has_a_file() -> None:
    named = {part["_target_"].rpartition(".")[2] for part in PARTS.values()}
    assert named == set(qat.quantizers.__all__) - {
        "LookupTable",
        "LookupTableQuantizer",
        "Mode",
        "Oscillations",
        "Quantizer",
        "ScaledFloat",
    }
    estimators = {p["estimator"]["_target_"].rpartition(".")[2] for p in PARTS.values() if "estimator" in p}
    assert estimators == set(qat.estimators.__all__) - {"Estimator", "StraightThrough"}


def test_every_file_can_be_used_somewhere_and_refusals_teach() -> None:
    assert {case.name for case in CASES} == set(PARTS) - OF_TOKENS
    uniform = {"lsq", "static", "ewgs", "dsq", "stochastic", "pact", "tqt", "dorefa", "lsq_plus"}
    assert {case.name for case in ACTIVATIONS} == uniform | {"qil", "n2uq", "apot", "lcq"}
    assert all("write " in message or "give activations another" in message for message in REFUSED.values())
    assert "Ternary has 2 bits, not 8: write bits: 2" in REFUSED[Case("ternary", "per_channel", 8)]


@everywhere
def test_the_output_is_on_the_grid_and_is_what_its_codes_say(case: Case) -> None:
    x = data()
    quantizer = case.calibrated(x)
    view, broadcastable = quantizer.spec.granularity.view, quantizer.spec.granularity.broadcastable
    for values in (x, 5 * x, torch.zeros(SHAPE)):
        assert on_grid(quantizer.train(), quantizer(values), case.layout)
        y, codes = quantizer.eval()(values), quantizer.quantize(values)
        assert on_grid(quantizer, y, case.layout)
        assert (y.shape, y.dtype) == (values.shape, torch.float32)
        assert torch.equal(codes, codes.detach().round())
        scale, zero_point = (broadcastable(p, SHAPE) for p in quantizer.qparams())
        if quantizer.scaled_codes:
            assert torch.equal(view(y), dequantize(view(codes), scale, zero_point))
        assert torch.equal(y, quantizer.dequantize(codes))
        assert len(codes.unique()) <= 2**case.bits
    assert not torch.equal(quantizer(x), x)


@pytest.mark.parametrize("name", [name for name in PARTS if not name.startswith("dynamic")])
def test_it_says_whether_it_first_rounds_as_static_does(name: str) -> None:
    x = data()
    same = []
    for case in [case for case in CASES if case.name == name]:
        ours, static = case.calibrated(x).eval(), replace(case.rule, quantizer="Static").build(LAYOUTS[case.layout][1])
        same.append(torch.equal(ours(x), calibrate(static, x)(x)))
    if name != "qil":  # as an activation it rounds twice, which shows in few values
        assert all(same) == ours.starts_as_static


@weights
def test_it_says_whether_codes_of_codes_are_the_same(case: Case) -> None:
    x = data()
    quantizer = case.calibrated(x)
    with torch.no_grad():
        for parameter in quantizer.parameters():  # as if it had learned
            parameter.mul_(0.7)
        codes = quantizer.quantize(x)
        assert torch.equal(quantizer.quantize(quantizer.dequantize(codes)), codes) == quantizer.idempotent


@weights
def test_the_nearest_code_of_an_average_is_one_that_weights_get(case: Case) -> None:
    quantizer = case.calibrated(data())
    if not quantizer.idempotent:
        return  # is never frozen
    spread = torch.linspace(-40, 40, 4 * 3000).reshape(4, -1)[:, :3000]
    found = (
        np.unique(case.rule.build((4, 3000)).quantize(spread).numpy()) if case.name in ("binary", "ternary") else None
    )
    grid = quantizer.spec.grid
    levels = (
        quantizer.levels().detach().numpy() if isinstance(quantizer, Codebook) else np.arange(grid.qmin, grid.qmax + 1)
    )
    levels = levels if found is None else found
    if isinstance(quantizer, ScaledFloat):
        levels = np.arange(-quantizer.format.highest_code, quantizer.format.highest_code + 1)
    averages = torch.cat([torch.linspace(-140, 140, 5001), torch.tensor([-torch.inf, torch.inf])])
    codes = quantizer.nearest_code(averages).numpy()
    assert set(codes) == set(levels.tolist())
    near = averages[:-2].double().numpy()
    best = np.abs(near[:, None] - levels).min(axis=1)
    np.testing.assert_allclose(np.abs(near - codes[:-2]), best)
    assert codes[-2:].tolist() == [levels.min(), levels.max()]


@everywhere
def test_sgd_with_a_huge_step_leaves_scales_positive_and_the_output_on_the_grid(case: Case) -> None:
    x = data()
    quantizer = case.calibrated(x)
    weight = nn.Parameter(x.clone())
    optimizer = torch.optim.SGD([weight, *quantizer.parameters()], lr=10.0)
    for step in range(4):
        optimizer.zero_grad()
        y = quantizer(weight)
        (y.square().sum() * (-1) ** step).backward()
        for p in [weight, *quantizer.parameters()]:
            assert p.grad is not None
            assert torch.isfinite(p.grad).all()
        optimizer.step()
        weight.data.clamp_(-1e3, 1e3)
        scale = quantizer.qparams().scale
        assert (scale > 0).all()
        assert torch.isfinite(scale).all()
        assert on_grid(quantizer, quantizer(weight), case.layout)


@pytest.mark.parametrize("case", [*ACTIVATIONS, *WEIGHTS], ids=str)
@pytest.mark.parametrize("lr", [1e6])
def test_adam_with_a_huge_step_does_neither(case: Case, lr: float) -> None:
    x = 5 * torch.randn(SHAPE)
    quantizer = case.calibrated(x)
    if not list(quantizer.parameters()):
        return
    optimizer = torch.optim.Adam(quantizer.parameters(), lr=lr)
    for step in range(12):
        optimizer.zero_grad()
        (quantizer(x).square().sum() * (-1) ** (step // 2)).backward()
        assert all(torch.isfinite(p.grad).all() for p in quantizer.parameters())
        optimizer.step()
        assert (quantizer.qparams().scale > 0).all()
        assert on_grid(quantizer, quantizer(x), case.layout)


@everywhere
def test_a_small_range_is_as_good_as_any(case: Case) -> None:
    """A power of two of the data is the same power of two of the scale."""
    if case.name.startswith("dynamic") or (case.name == "dorefa" and case.layout != "activation"):
        return  # has no range; tanh is not a straight line
    x, small = data(), 2.0**-20 * data()
    ours, theirs = (q.qparams().scale for q in (case.calibrated(small), case.calibrated(2**20 * small)))
    torch.testing.assert_close(2**20 * ours, theirs)
    assert len(case.calibrated(x)(x).unique()) > 1


@weights
def test_a_weight_can_be_used_again_before_the_backward(case: Case) -> None:
    """A layer that runs twice, two losses added, a look at the codes in between."""
    quantizer = case.calibrated(data())
    weight = nn.Parameter(data())
    first, second = quantizer(weight).square().sum(), quantizer(2 * weight).sum()
    with torch.no_grad():
        quantizer(3 * weight)
    quantizer.quantize(weight)
    (first + second).backward()
    assert torch.isfinite(weight.grad).all()


@pytest.mark.parametrize("case", [*ACTIVATIONS, *WEIGHTS], ids=str)
def test_a_value_that_is_no_number_reaches_the_loss(case: Case) -> None:
    quantizer = case.calibrated(data())
    x = data()
    x[1, 1, 1, 1] = torch.nan
    assert not torch.isfinite(quantizer(x)).all()


@pytest.mark.parametrize("case", ACTIVATIONS, ids=str)
def test_a_batch_with_nothing_in_it_passes(case: Case) -> None:
    quantizer = case.build()
    quantizer.mode = Mode.OBSERVE
    for x in (torch.rand(4, 3), torch.rand(0, 3), torch.rand(4, 0, 3)):
        quantizer(x)
    quantizer.finish_observing()
    quantizer.mode = Mode.QUANTIZE
    for shape in ((0, 3), (4, 0, 3)):
        y = quantizer(torch.rand(shape, requires_grad=True))
        y.sum().backward()
        assert y.shape == shape


@each
def test_the_default_dtype_changes_nothing(case: Case) -> None:
    x = data()

    def results() -> list[torch.Tensor]:
        torch.manual_seed(0)
        quantizer, leaf = case.calibrated(x), x.clone().requires_grad_()
        y = quantizer(2.0 * leaf)
        y.backward(x.cos())
        state = [quantizer.state_dict()[name] for name in sorted(quantizer.state_dict())]
        return [y, leaf.grad, *(p.grad for p in quantizer.parameters()), *state]

    expected = results()
    torch.set_default_dtype(torch.float64)
    try:
        found = results()
    finally:
        torch.set_default_dtype(torch.float32)
    assert [a.dtype for a in found] == [a.dtype for a in expected]
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("case", [c for c in CASES if c.layout in ("activation", "per_tensor")], ids=str)
def test_gradients_are_finite_everywhere(case: Case) -> None:
    quantizer = case.calibrated(data())
    scale, zero_point = quantizer.qparams()
    lo, hi = quantizer.spec.grid.qmin - zero_point, quantizer.spec.grid.qmax - zero_point
    v = torch.cat([lo - 1e30, lo, lo + 0.25, lo + 0.5, torch.zeros(1), hi - 0.5, hi - 0.25, hi, hi + 0.25, hi + 1e30])
    x = (v * scale)[:, None].requires_grad_()
    y = quantizer(x)
    y.sum().backward()
    assert torch.isfinite(y).all()
    assert torch.isfinite(x.grad).all()
    assert all(torch.isfinite(p.grad).all() for p in quantizer.parameters())


@pytest.mark.parametrize("case", ACTIVATIONS, ids=str)
@pytest.mark.parametrize("training", [True, False])
def test_an_unsigned_symmetric_grid_can_stand_for_a_relu(case: Case, training: bool) -> None:
    quantizer = case.calibrated(torch.rand(SHAPE)).train(training)
    x = torch.cat([-torch.rand(20), torch.zeros(1), -torch.tensor([1e-30, 1e30])])[:, None].requires_grad_()
    y = quantizer(x)
    y.sum().backward()
    assert not y.any()
    assert not x.grad.any()


@pytest.mark.parametrize("case", [c for c in CASES if c.bits == (2 if c.name in ("ternary", "binary") else 4)], ids=str)
def test_a_state_dict_carries_everything(case: Case) -> None:
    x = data()
    source = case.calibrated(x).eval()
    for p in source.parameters():
        p.data.mul_(1.25)
    state = copy.deepcopy(source.state_dict())
    restored = case.build().eval()
    assert not restored.ready
    restored.load_state_dict(state, strict=True)
    assert restored.ready
    assert restored.initialized
    assert torch.equal(restored(x), source(x))
    assert {k: tuple(v.shape) for k, v in restored.state_dict().items()} == {
        k: tuple(v.shape) for k, v in state.items()
    }


@waiting
def test_a_state_dict_without_a_range_makes_not_ready_again(case: Case) -> None:
    fresh, used = case.build(), case.calibrated(data())
    used.load_state_dict(fresh.state_dict())
    assert not used.ready
    with pytest.raises(RuntimeError, match="has no range yet"):
        used(data())


@each
def test_everything_has_its_final_shape_before_any_data(case: Case) -> None:
    fresh = case.build()
    before = {name: (id(t), t.shape, t.dtype) for name, t in [*fresh.named_parameters(), *fresh.named_buffers()]}
    calibrate(fresh, data())
    fresh(data())
    fresh.quantize(data())
    assert {n: (id(t), t.shape, t.dtype) for n, t in [*fresh.named_parameters(), *fresh.named_buffers()]} == before


@each
def test_a_deep_copy_is_equal_and_apart(case: Case) -> None:
    x = data()
    source = case.calibrated(x).eval()
    clone = copy.deepcopy(source)
    assert torch.equal(clone(x), source(x))
    state = copy.deepcopy(source.state_dict())
    wide = torch.full((clone.n_qparams,), 1e3)
    clone.set_range(-wide, wide)
    assert all(torch.equal(value, state[name]) for name, value in source.state_dict().items())
    assert not torch.equal(clone.qparams().scale, source.qparams().scale)


@each
def test_bfloat16_autocast_keeps_the_maths_in_float32(case: Case) -> None:
    x = data()
    quantizer = case.calibrated(x).eval()
    assert_float32_maths(quantizer, x)


@waiting
def test_without_a_range_the_message_says_what_to_do(case: Case) -> None:
    quantizer = case.build()
    quantizer.label = "layer1.conv.weight"
    with pytest.raises(
        RuntimeError, match=r"'layer1.conv.weight' has no range yet: call qat.calibrate\(model, batches\) or load"
    ):
        quantizer(data())


@waiting
def test_modes(case: Case) -> None:
    x = data()
    quantizer = case.build()
    quantizer.mode = Mode.OFF
    assert quantizer(x) is x
    with pytest.raises(RuntimeError, match="has seen no data"):
        quantizer.finish_observing()  # off means off
    quantizer.mode = Mode.OBSERVE
    assert quantizer(x) is x
    quantizer.finish_observing()
    first = copy.deepcopy(quantizer.state_dict())
    quantizer(100 * x)  # ready: a second observation changes nothing
    quantizer.finish_observing()
    assert all(torch.equal(value, first[name]) for name, value in quantizer.state_dict().items())
    quantizer.mode = Mode.QUANTIZE
    quantizer(100 * x)
    with pytest.raises(RuntimeError, match="has seen no data"):
        quantizer.observer.range()


FIRST_RANGES = {
    "tqt": (1.0, 2.0),  # the next power of two
    "k_means": (0.3, 1.001),  # its outermost level is a mean
    **dict.fromkeys(("dorefa", "apot", "lcq", "qil", "n2uq", "sawb", "ternary", "binary"), (1.0, 1.0)),
}
"""How far the first range of a weight may be from the observer's, by the name of the quantizer."""


@weights
@pytest.mark.parametrize("observer", [MinMax, MSE, MeanAbs], ids=lambda cls: cls.__name__)
def test_the_first_range_is_the_observers(case: Case, observer: Callable) -> None:
    if case.name in OF_FORMATS:
        return  # the format defines the scale
    x, rule = data(), replace(case.rule, observer=observer.__name__)
    quantizer, apart = rule.build(SHAPE), observer(rule.spec())
    apart.update(quantizer.spec.granularity.rows(x))
    expected = quantizer.spec.qparams(*apart.range()).scale * quantizer.spec.grid.qmax
    calibrate(quantizer, x)
    highest = quantizer.levels().detach().abs().max() if isinstance(quantizer, Codebook) else quantizer.spec.grid.qmax
    ratio = quantizer.qparams().scale * highest / expected
    low, high = FIRST_RANGES.get(case.name, (1.0, 1.0) if quantizer.starts_as_static else (0.3, 3.0))
    assert ((ratio > low - 1e-6) & (ratio < high + 1e-6)).all()


@each
def test_a_range_that_is_not_finite_is_refused_and_nothing_changes(case: Case) -> None:
    quantizer = case.calibrated(data())
    before = copy.deepcopy(quantizer.state_dict())
    with pytest.raises(ValueError, match="not finite"):
        quantizer.set_range(torch.tensor([float("nan")]), torch.tensor([1.0]))
    assert all(torch.equal(v, before[k]) for k, v in quantizer.state_dict().items())


@pytest.mark.parametrize("case", ACTIVATIONS, ids=str)
def test_an_empty_batch_passes(case: Case) -> None:
    quantizer = case.calibrated(data())
    assert quantizer(torch.zeros(0, 3, 2, 2)).shape == (0, 3, 2, 2)


@weights
def test_weights_and_parameters_learn_through_it(case: Case) -> None:
    x, truth = torch.randn(64, 12), torch.randn(4, 12)
    weight = nn.Parameter(0.1 * torch.randn(4, 12))
    quantizer = case.rule.build((4, 12))
    quantizer.set_range(*torch.aminmax(truth, dim=1))
    truth = quantizer.eval()(truth).detach()  # what can be reached
    farthest = (torch.arange(4), truth.abs().argmax(dim=1))
    weight.data[farthest] = 1.1 * truth[farthest]  # one weight of each channel is clipped: from them PACT learns
    first = [p.detach().clone() for p in quantizer.train().parameters()]
    optimizer = torch.optim.Adam([weight, *quantizer.parameters()], lr=0.05)
    losses = []
    for _ in range(150):
        loss = (x @ (quantizer(weight) - truth).T).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    follows = isinstance(
        quantizer, WeightStatisticsQuantizer
    )  # its grid moves with the weights, so their target is nearly one of its grids
    assert np.mean(losses[-20:]) < (0.4 if follows else 0.1) * losses[0]
    assert len(quantizer.quantize(weight).unique()) > (4 if case.bits > 2 else 1)
    assert all(not torch.equal(p, before) for p, before in zip(quantizer.parameters(), first, strict=True))


@each
def test_qparams_are_float32_and_int32_and_detached(case: Case) -> None:
    quantizer = case.calibrated(data())
    quantizer(data().requires_grad_())
    qparams = quantizer.qparams()
    assert isinstance(qparams, QParams)
    assert (qparams.scale.dtype, qparams.zero_point.dtype) == (torch.float32, torch.int32)
    assert not qparams.scale.requires_grad


@each
@pytest.mark.parametrize("convert", [nn.Module.half, nn.Module.bfloat16, nn.Module.double], ids=lambda f: f.__name__)
def test_state_moves_but_keeps_its_types(case: Case, convert: Callable[..., Quantizer]) -> None:
    quantizer = case.calibrated(data())
    before = {name: value.clone() for name, value in quantizer.state_dict().items()}
    after = convert(quantizer).state_dict()
    assert {name: value.dtype for name, value in after.items()} == {n: v.dtype for n, v in before.items()}
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert all(value.device.type == "meta" for value in convert(quantizer).to("meta").state_dict().values())


@each
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_other_types_are_quantized_in_float32(case: Case, dtype: torch.dtype) -> None:
    x = data().to(dtype)
    quantizer, reference = case.calibrated(x).eval(), case.calibrated(x.float()).eval()
    assert torch.equal(quantizer.qparams().scale, reference.qparams().scale)
    y = quantizer(x)
    assert y.dtype == dtype
    assert torch.equal(y, reference(x.float()).to(dtype))
    assert torch.equal(quantizer.quantize(x), reference.quantize(x.float()))
