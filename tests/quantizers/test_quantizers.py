"""What every quantizer promises, for every class that `qat.quantizers` exports."""

import copy
from collections.abc import Callable

import numpy as np
import pytest
import torch
from oracles import fake_quantize as oracle
from torch import Tensor, nn

import qat.quantizers
from qat import Grid, Mode, PerChannel, PerGroup, PerTensor, QParams, QuantSpec
from qat.functional import dequantize
from qat.observers import MSE, MeanAbs, MinMax
from qat.quantizers import LSQ, Quantizer, Static

CLASSES = [getattr(qat.quantizers, name) for name in qat.quantizers.__all__ if name not in ("Mode", "Quantizer")]
GRANULARITIES = {
    "per_tensor": (PerTensor(), oracle.per_tensor),
    "per_channel": (PerChannel(), oracle.per_channel),
    "per_group": (PerGroup(6), lambda shape: oracle.per_group(shape, 6)),
}
FORMS = {"signed": (True, True), "unsigned": (False, True), "affine": (False, False)}
SHAPE = (4, 3, 2, 2)

every = pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
granularities = pytest.mark.parametrize("granularity", GRANULARITIES)
forms = pytest.mark.parametrize("form", FORMS)
bits_ = pytest.mark.parametrize("bits", [2, 4, 8])


def spec_of(granularity: str = "per_tensor", bits: int = 4, form: str = "signed") -> QuantSpec:
    signed, symmetric = FORMS[form]
    return QuantSpec(Grid(bits, signed, narrow=signed), GRANULARITIES[granularity][0], symmetric)


def make(cls: Callable[..., Quantizer], spec: QuantSpec, of: Tensor | None = None, observer=None) -> Quantizer:
    """A quantizer for tensors like `of`, and calibrated on it if given; activations (per tensor) have no shape."""
    shape = () if isinstance(spec.granularity, PerTensor) else SHAPE
    quantizer = cls(spec, shape, observer)
    if of is not None:
        quantizer.mode = Mode.OBSERVE
        quantizer(of)
        quantizer.finish_observing()
        quantizer.mode = Mode.QUANTIZE
    return quantizer


def data() -> Tensor:
    return torch.randn(SHAPE) * torch.tensor([0.1, 1.0, 3.0, 20.0])[:, None, None, None]


def on_grid(quantizer: Quantizer, y: Tensor, granularity: str) -> bool:
    """Whether y is some allowed code times its scale, in float32, by the numpy oracle's numbering."""
    shared = GRANULARITIES[granularity][1](tuple(y.shape))
    scale, zero_point = (p.numpy() for p in quantizer.qparams())
    grid = quantizer.spec.grid
    codes = np.arange(grid.qmin, grid.qmax + 1)
    allowed = (codes - zero_point[shared][..., None]).astype(np.float32) * scale[shared][..., None]
    return bool((allowed == y.detach().numpy()[..., None]).any(axis=-1).all())


@every
@granularities
@bits_
@forms
def test_the_output_is_on_the_grid_and_is_what_its_codes_say(cls, granularity, bits, form) -> None:
    x = data()
    quantizer = make(cls, spec_of(granularity, bits, form), x)
    for values in (x, 5 * x, torch.zeros(SHAPE)):
        y, codes = quantizer(values), quantizer.quantize(values)
        assert on_grid(quantizer, y, granularity)
        assert (y.shape, y.dtype) == (values.shape, torch.float32)
        assert torch.equal(codes, codes.detach().round())
        view = quantizer.spec.granularity.view
        scale, zero_point = (quantizer.spec.granularity.shaped(p, SHAPE) for p in quantizer.qparams())
        assert torch.equal(view(y), dequantize(view(codes), scale, zero_point))
    assert not torch.equal(quantizer(x), x)


@every
@granularities
@forms
def test_forward_and_input_gradient_are_those_of_the_oracle(cls, granularity, form) -> None:
    x = data()
    quantizer = make(cls, spec_of(granularity, 4, form), 0.4 * x)  # some values are clipped
    scale, zero_point = (p.numpy().copy() for p in quantizer.qparams())
    grid, shared = quantizer.spec.grid, GRANULARITIES[granularity][1](SHAPE)
    arguments = (x.numpy(), scale, zero_point, grid.qmin, grid.qmax, shared)
    leaf, grad = x.clone().requires_grad_(), torch.randn(SHAPE)
    y = quantizer(leaf)
    y.backward(grad)
    assert np.array_equal(y.detach().numpy(), oracle.forward(*arguments))
    dx, _ = oracle.backward(*arguments, grad.numpy())
    assert 0 < (dx == 0).mean() < 0.9  # clipped and interior values are there
    np.testing.assert_array_equal(leaf.grad.numpy(), dx.astype(np.float32))


@every
@granularities
@bits_
@forms
def test_sgd_with_a_huge_step_leaves_scales_positive_and_the_output_on_the_grid(cls, granularity, bits, form) -> None:
    x = data()
    quantizer = make(cls, spec_of(granularity, bits, form), x)
    weight = nn.Parameter(x.clone())
    optimizer = torch.optim.SGD([weight, *quantizer.parameters()], lr=10.0)
    for step in range(6):
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
        assert on_grid(quantizer, quantizer(weight), granularity)


@every
@forms
def test_gradients_are_finite_everywhere(cls, form) -> None:
    quantizer = make(cls, spec_of("per_tensor", 4, form), data())
    scale, zero_point = quantizer.qparams()
    lo, hi = quantizer.spec.grid.qmin - zero_point, quantizer.spec.grid.qmax - zero_point
    v = torch.cat([lo - 1e30, lo, lo + 0.25, lo + 0.5, torch.zeros(1), hi - 0.5, hi - 0.25, hi, hi + 0.25, hi + 1e30])
    x = (v * scale)[:, None].requires_grad_()
    quantizer(x).sum().backward()
    assert torch.isfinite(x.grad).all()
    assert {0.0, 1.0} == set(x.grad.flatten().tolist())
    assert all(torch.isfinite(p.grad).all() for p in quantizer.parameters())


@every
@granularities
@forms
def test_a_state_dict_carries_everything(cls, granularity, form) -> None:
    x = data()
    source = make(cls, spec_of(granularity, 4, form), x)
    for p in source.parameters():
        p.data.mul_(1.25)
    state = copy.deepcopy(source.state_dict())
    restored = make(cls, spec_of(granularity, 4, form))
    assert not restored.ready
    restored.load_state_dict(state, strict=True)
    assert restored.ready
    assert restored.initialized
    assert torch.equal(restored(x), source(x))
    assert {k: tuple(v.shape) for k, v in restored.state_dict().items()} == {
        k: tuple(v.shape) for k, v in state.items()
    }


@every
def test_a_state_dict_without_a_range_makes_not_ready_again(cls) -> None:
    fresh, used = make(cls, spec_of()), make(cls, spec_of(), data())
    used.load_state_dict(fresh.state_dict())
    assert not used.ready
    with pytest.raises(RuntimeError, match="has no range yet"):
        used(data())


@every
@granularities
def test_everything_has_its_final_shape_before_any_data(cls, granularity) -> None:
    spec = spec_of(granularity)
    fresh = make(cls, spec)
    before = {name: (id(t), t.shape, t.dtype) for name, t in [*fresh.named_parameters(), *fresh.named_buffers()]}
    fresh.mode = Mode.OBSERVE
    fresh(data())
    fresh.finish_observing()
    assert {n: (id(t), t.shape, t.dtype) for n, t in [*fresh.named_parameters(), *fresh.named_buffers()]} == before


@every
def test_a_deep_copy_is_equal_and_apart(cls) -> None:
    x = data()
    source = make(cls, spec_of(), x)
    clone = copy.deepcopy(source)
    expected = source(x)
    assert torch.equal(clone(x), expected)
    clone.set_range(torch.tensor([-1e3]), torch.tensor([1e3]))
    assert torch.equal(source(x), expected)
    assert not torch.equal(clone(x), expected)


@every
def test_bfloat16_autocast_keeps_the_maths_in_float32(cls) -> None:
    quantizer = make(cls, spec_of("per_tensor", 8), torch.randn(SHAPE))
    x = torch.randn(64, *SHAPE)
    reach = 127 * quantizer.qparams().scale.item()
    x[0], x[1] = reach, torch.linspace(-1.02, 1.02, 48).reshape(SHAPE) * reach  # on the bounds, also once rounded

    def gradients(values: Tensor) -> list[Tensor]:
        quantizer.zero_grad()
        leaf = values.clone().requires_grad_()
        y = quantizer(leaf)
        y.backward(torch.ones_like(y))
        return [y.detach(), leaf.grad, *(p.grad.clone() for p in quantizer.parameters())]

    plain = gradients(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        under = gradients(x)
        half = gradients(x.bfloat16())
    assert all(a.dtype is b.dtype and torch.equal(a, b) for a, b in zip(under, plain, strict=True))
    exact = gradients(x.bfloat16().float())
    assert half[0].dtype is torch.bfloat16
    assert torch.equal(half[0], exact[0].bfloat16())
    assert torch.equal(half[1], exact[1].bfloat16())
    torch.testing.assert_close(half[2:], exact[2:])
    assert quantizer.qparams().scale.dtype is torch.float32


@every
def test_without_a_range_the_message_says_what_to_do(cls) -> None:
    quantizer = make(cls, spec_of())
    quantizer.label = "layer1.conv.weight"
    with pytest.raises(
        RuntimeError, match=r"'layer1.conv.weight' has no range yet: call qat.calibrate\(model, batches\) or load"
    ):
        quantizer(data())


@every
def test_modes(cls) -> None:
    x = data()
    quantizer = make(cls, spec_of())
    quantizer.mode = Mode.OFF
    assert quantizer(x) is x
    with pytest.raises(RuntimeError, match="has seen no data"):
        quantizer.finish_observing()  # off means off
    quantizer.mode = Mode.OBSERVE
    assert quantizer(x) is x
    quantizer.finish_observing()
    first = quantizer.qparams().scale.clone()
    quantizer(100 * x)  # ready: a second observation changes nothing
    quantizer.finish_observing()
    assert torch.equal(quantizer.qparams().scale, first)
    quantizer.mode = Mode.QUANTIZE
    quantizer(100 * x)
    with pytest.raises(RuntimeError, match="has seen no data"):
        quantizer.observer.range()


@every
@pytest.mark.parametrize("observer", [MinMax, MSE, MeanAbs], ids=lambda cls: cls.__name__)
def test_the_first_range_is_the_observers(cls, observer) -> None:
    x, spec = data(), spec_of("per_channel")
    apart = observer(spec)
    apart.update(spec.granularity.rows(x))
    assert torch.equal(make(cls, spec, x, observer(spec)).qparams().scale, spec.qparams(*apart.range()).scale)


@every
def test_a_range_that_is_not_finite_is_refused_and_nothing_changes(cls) -> None:
    quantizer = make(cls, spec_of(), data())
    before = copy.deepcopy(quantizer.state_dict())
    with pytest.raises(ValueError, match="not finite"):
        quantizer.set_range(torch.tensor([float("nan")]), torch.tensor([1.0]))
    assert all(torch.equal(v, before[k]) for k, v in quantizer.state_dict().items())


@every
def test_an_empty_batch_passes(cls) -> None:
    quantizer = make(cls, spec_of(), data())
    assert quantizer(torch.zeros(0, 3, 2, 2)).shape == (0, 3, 2, 2)


@every
def test_weights_learn_through_it(cls) -> None:
    x, truth = torch.randn(256, 12), torch.randn(4, 12)
    weight = nn.Parameter(0.1 * torch.randn(4, 12))
    quantizer = cls(QuantSpec(Grid(4, narrow=True), PerChannel()), (4, 12))
    quantizer.set_range(*torch.aminmax(truth, dim=1))
    optimizer = torch.optim.Adam([weight, *quantizer.parameters()], lr=0.05)
    losses = []
    for _ in range(250):
        loss = (x @ (quantizer(weight) - truth).T).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.1 * losses[0]
    codes = quantizer.quantize(weight).unique()
    assert len(codes) > 4


# LSQ


def test_lsq_learns_a_better_scale_than_its_first() -> None:
    x = torch.randn(64, 100)
    x[0, 0] = 12.0  # min-max starts far too wide
    quantizer = make(LSQ, spec_of("per_tensor", 3), x)
    first = (quantizer(x) - x).square().mean().item()
    optimizer = torch.optim.SGD(quantizer.parameters(), lr=0.5)
    for _ in range(200):
        optimizer.zero_grad()
        (quantizer(x) - x).square().sum(dim=1).mean().backward()
        optimizer.step()
    learned = (quantizer(x) - x).square().mean().item()
    best = min(
        float(((oracle.forward(x.numpy(), np.array([s], np.float32), np.zeros(1, int), -3, 3,
                               oracle.per_tensor((64, 100))) - x.numpy()) ** 2).mean())
        for s in np.linspace(0.2, 4, 200)
    )  # fmt: skip
    assert learned < 0.3 * first
    assert learned < 1.2 * best


def test_static_never_learns_its_range() -> None:
    assert list(make(Static, spec_of()).parameters()) == []


@granularities
@bits_
def test_the_scale_gradient_of_lsq_is_eq_3_times_g(granularity: str, bits: int) -> None:
    x, grad = data(), torch.randn(SHAPE)
    quantizer = make(LSQ, spec_of(granularity, bits), 0.4 * x)
    quantizer(x).backward(grad)
    shared = GRANULARITIES[granularity][1](SHAPE)
    # weights: the elements that share a scale; activations (per tensor): those of one sample
    sharing = {"per_tensor": 12, "per_channel": 12, "per_group": 6}[granularity]
    g = 1 / np.sqrt(sharing * (2 ** (bits - 1) - 1))
    scale, zero_point = (p.numpy() for p in quantizer.qparams())
    grid = quantizer.spec.grid
    _, expected = oracle.backward(x.numpy(), scale, zero_point, grid.qmin, grid.qmax, shared, grad.numpy(), g)
    np.testing.assert_allclose(quantizer.scale.grad.numpy(), expected, rtol=1e-4, atol=1e-5)


def test_a_weight_with_one_scale_counts_all_its_elements() -> None:
    x, grad = data(), torch.randn(SHAPE)
    quantizer = LSQ(spec_of(), SHAPE)  # a shape: a weight
    quantizer.set_range(torch.tensor([-2.0]), torch.tensor([2.0]))
    quantizer(x).backward(grad)
    scale, zero_point = (p.numpy() for p in quantizer.qparams())
    shared = oracle.per_tensor(SHAPE)
    _, expected = oracle.backward(x.numpy(), scale, zero_point, -7, 7, shared, grad.numpy(), 1 / np.sqrt(48 * 7))
    np.testing.assert_allclose(quantizer.scale.grad.numpy(), expected, rtol=1e-4)


@pytest.mark.parametrize("copies", [2, 16])
def test_the_scale_gradient_of_an_activation_does_not_depend_on_the_batch_size(copies: int) -> None:
    x = torch.randn(4, 3, 5, 5)
    gradients = []
    for batch in (x, x.repeat(copies, 1, 1, 1)):
        quantizer = make(LSQ, spec_of(), x)
        (quantizer(batch) ** 3 + quantizer(batch)).mean().backward()
        gradients.append(quantizer.scale.grad.item())
    assert gradients[0] != 0
    assert gradients[1] == pytest.approx(gradients[0], rel=1e-4)


def test_a_scale_below_its_floor_recovers() -> None:
    x = torch.randn(8, 50)
    quantizer = make(LSQ, spec_of(), x)
    first = quantizer.qparams().scale.clone()
    with torch.no_grad():
        quantizer.scale.fill_(-3.0)
    assert quantizer.qparams().scale.item() == pytest.approx(first.item() / 1024)
    assert on_grid(quantizer, quantizer(x), "per_tensor")
    optimizer = torch.optim.SGD(quantizer.parameters(), lr=1.0)
    for _ in range(300):
        optimizer.zero_grad()
        (quantizer(x) - x).square().sum(dim=1).mean().backward()
        optimizer.step()
    assert 0.3 * first < quantizer.qparams().scale < 2 * first


@every
def test_qparams_are_float32_and_int32_and_detached(cls) -> None:
    qparams = make(cls, spec_of(), data()).qparams()
    assert isinstance(qparams, QParams)
    assert (qparams.scale.dtype, qparams.zero_point.dtype) == (torch.float32, torch.int32)
    assert not qparams.scale.requires_grad


@every
@pytest.mark.parametrize("convert", [nn.Module.half, nn.Module.bfloat16, nn.Module.double], ids=lambda f: f.__name__)
def test_state_moves_but_keeps_its_types(cls: Callable[..., Quantizer], convert: Callable[..., Quantizer]) -> None:
    quantizer = make(cls, spec_of(form="affine", bits=8), of=data())
    before = {name: value.clone() for name, value in quantizer.state_dict().items()}
    after = convert(quantizer).state_dict()
    assert {name: value.dtype for name, value in after.items()} == {n: v.dtype for n, v in before.items()}
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert all(value.device.type == "meta" for value in convert(quantizer).to("meta").state_dict().values())


@every
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_other_types_are_quantized_in_float32(cls: Callable[..., Quantizer], dtype: torch.dtype) -> None:
    x = data().to(dtype)
    quantizer = make(cls, spec_of(bits=8), of=x)
    assert torch.equal(quantizer.qparams().scale, make(cls, spec_of(bits=8), of=x.float()).qparams().scale)
    y = quantizer(x)
    assert y.dtype == dtype
    scale = quantizer.qparams().scale.numpy()
    expected = np.clip(np.round(x.float().numpy() / scale), -127, 127) * scale
    assert torch.equal(y, torch.from_numpy(expected).to(dtype))
