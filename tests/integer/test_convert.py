"""qat.convert: the integers mean what was trained."""

from __future__ import annotations

import copy
import re

import numpy as np
import pytest
import torch
from torch import nn

import qat
from qat.export.pt2e.build import to_pt2e
from qat.integer import IntegerModel, stored_bytes
from qat.integer.absorb import absorb
from qat.integer.arithmetic import Encoding
from qat.integer.fingerprint import fingerprint
from qat.integer.layers import IntegerLayer
from qat.integer.modules import IntegerMean
from qat.integer.weight_only import WeightOnlyLayer
from qat.nn import as_quantized
from qat.operations import Mean
from tests.networks import INTEGER, Gate, OptionA, Rows, build, images


def calibrated(network, policy="w8a8"):
    prepared = qat.prepare(build(network), policy)
    qat.calibrate(prepared, [images(64)])
    return prepared.eval()


@pytest.mark.parametrize("network", INTEGER)
def test_the_integer_model_computes_what_was_trained_up_to_rounding(network):
    prepared = calibrated(network)
    integer = qat.convert(prepared)
    with torch.no_grad():
        trained, deployed = prepared(images(64, seed=2)), integer(images(64, seed=2))
    assert (trained - deployed).abs().mean() < 0.02 * trained.std()
    assert trained.std() > 0.05


def test_few_bits_leave_the_bias_exact():
    """As exact as int8 weights allow; if it were rounded to units of one product, one code in five would differ."""
    prepared = calibrated(OptionA, qat.load_policy("w2a2", first_last_bits=None))
    integer = qat.convert(prepared)
    layers = [m for m in integer.children() if isinstance(m, IntegerLayer)]
    assert [layer.product_units for layer in layers] == [64] * 4
    assert all(int(layer.product_units * layer.weight.long().abs().max()) <= 127 for layer in layers)
    x = images(64, seed=2)
    with torch.no_grad():
        _, codes = integer.codes(x)
        trained = prepared.sites["conv1"].quantize(prepared.bn1(prepared.conv1(prepared.sites["x_input"](x))))
    assert 0 < (codes["conv1"] != trained.relu()).float().mean() < 0.03


@pytest.mark.parametrize("network", INTEGER)
def test_only_input_and_output_are_float(network):
    integer = qat.convert(calibrated(network))
    assert isinstance(integer, IntegerModel)
    kinds = {type(m).__name__ for m in integer.children()}
    assert not kinds & {"Dequantize", "Conv2d", "Linear", "BatchNorm2d", "ReLU"}
    assert sum(type(m).__name__ == "Quantize" for m in integer.children()) == 1


def test_operations_left_in_float_stay_float():
    prepared = calibrated(Gate)
    integer = qat.convert(prepared)
    with torch.no_grad():
        trained, deployed = prepared(images(32)), integer(images(32))
    assert {"InstanceNorm2d", "Dequantize"} <= {type(m).__name__ for m in integer.children()}
    assert (trained - deployed).abs().mean() < 0.02 * trained.std()


def test_the_model_handed_in_does_not_change():
    prepared = calibrated(OptionA).train()
    before = copy.deepcopy(prepared.state_dict())
    qat.convert(prepared)
    assert prepared.training
    assert all(torch.equal(before[name], value) for name, value in prepared.state_dict().items())


def test_a_negative_gain_flips_codes_exactly():
    layer = as_quantized(qat.prepare(nn.Sequential(nn.Linear(4, 3, bias=False)), "w8a8").get_submodule("0"))
    layer.weight_quantizer.observer.update(layer.weight.detach())
    layer.weight_quantizer.finish_observing()
    norm = nn.BatchNorm1d(3, eps=0.0)
    norm.weight.data = torch.tensor([-2.0, 1.0, -0.5])
    plain, absorbed = absorb(layer, None, Encoding(1.0, 0)), absorb(layer, norm, Encoding(1.0, 0))
    assert torch.equal(absorbed.weight, plain.weight * torch.tensor([[-1.0], [1.0], [-1.0]]))
    assert torch.allclose(absorbed.scale, plain.scale * torch.tensor([2.0, 1.0, 0.5]), rtol=1e-6)


def test_a_flip_needs_a_narrow_grid():
    policy = qat.load_policy("w8a8", weight={"narrow": False}, first_last_bits=None)
    model = nn.Sequential(nn.Conv2d(1, 1, 2, bias=False), nn.BatchNorm2d(1))
    model[0].weight.data = torch.tensor([[[[-128.0, 127.0], [3.0, 4.0]]]])
    model[1].weight.data.fill_(-1.0)
    prepared = qat.prepare(model, policy)
    qat.calibrate(prepared, [torch.randn(4, 1, 5, 5)])
    with torch.no_grad():
        prepared.get_submodule("0").weight_quantizer.scale.fill_(1.0)
    with pytest.raises(ValueError, match="narrow: true"):
        qat.convert(prepared)


@pytest.mark.parametrize("gain", [0.0, 1e-30, 1e-12])
def test_the_bias_of_a_dead_channel_fits_int32(gain):
    model = build(OptionA)
    model.bn1.weight.data[2], model.bn1.bias.data[2] = gain, 3.0
    model.conv3.weight.data[5] = 0.0
    prepared = qat.prepare(model, "w8a8")
    qat.calibrate(prepared, [images(32)])
    integer = qat.convert(prepared)
    with torch.no_grad():
        _, codes = integer.codes(images(8))
        grid = integer.conv1.output
        real = (codes["conv1"][:, 2].float() - grid.zero_point) * grid.scale
    assert integer.conv1.bias.abs().max() < 2**31 - 1
    assert torch.allclose(real, torch.tensor(3.0), atol=grid.scale)


def test_groups_keep_integer_weights_and_calculate_in_float():
    weight = {"bits": 4, "granularity": "per_group", "group_size": 3}
    rules = {"middle": {"match": "fc2", "weight": weight, "activation": {"bits": 8}}}
    prepared = qat.prepare(build(Rows), qat.load_policy({"rules": rules}))
    qat.calibrate(prepared, [images(64)])
    integer = qat.convert(prepared)
    layers = [m for m in integer.children() if isinstance(m, WeightOnlyLayer)]
    assert len(layers) == 1
    assert layers[0].codes.dtype == torch.int8
    assert layers[0].weight.dtype == torch.float32
    with torch.no_grad():
        assert torch.allclose(prepared.eval()(images(8)), integer(images(8)), atol=1e-5)


def test_unprepared_and_uncalibrated_models_are_refused():
    with pytest.raises(ValueError, match=r"qat\.prepare"):
        qat.convert(build(OptionA))
    with pytest.raises(ValueError, match=r"no range yet: call qat\.calibrate"):
        qat.convert(qat.prepare(build(OptionA), "w8a8"))


def test_stored_bytes_count_the_bits_of_weights():
    model = nn.Sequential(nn.Linear(64, 32, bias=False))
    assert stored_bytes(model) == 64 * 32 * 4
    four = qat.prepare(model, qat.load_policy("w4a8", first_last_bits=None))
    assert stored_bytes(four) == 64 * 32 // 2 + 32 * 4 + sum(
        t.numel() * t.element_size() for q in [four.sites] for t in (*q.parameters(), *q.buffers())
    )


def test_weights_use_the_bits_of_their_policy():
    integer = qat.convert(calibrated(OptionA, "w2a2"))
    layers = {n: m for n, m in integer.named_children() if isinstance(m, IntegerLayer)}
    assert {n: m.weight_bits for n, m in layers.items()} == {"conv1": 8, "conv2": 2, "conv3": 2, "linear": 8}
    assert int(layers["conv2"].weight.abs().max()) == 1
    assert int(layers["conv1"].weight.abs().max()) > 64


@pytest.mark.parametrize("policy", ["w8a8", "w8_dynamic"])
def test_a_batchnorm_of_tokens_is_refused(policy: str) -> None:
    """It normalises the second axis, but would be absorbed into the last."""
    network, x = (
        nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 3)).eval(),
        torch.randn(16, 6, 6),
    )
    prepared = qat.prepare(network, policy, x)
    qat.calibrate(prepared, [x])
    with pytest.raises(ValueError, match=r"normalises the second axis of \(16, 6, 6\).* write nn.LayerNorm, or a rule"):
        qat.convert(prepared)(x)
    rule = {"first": {"match": "0", "weight": None, "activation": None}}
    prepared = qat.prepare(network, qat.load_policy(policy, rules=rule), x)
    qat.calibrate(prepared, [x])
    torch.testing.assert_close(qat.convert(prepared)(x), prepared(x), rtol=0.0, atol=0.05)


@pytest.mark.parametrize(("dims", "shape"), [((2, 3), (2, 6, 3, 4, 4)), ((-2, -1), (2, 6, 4)), (1, (2, 6, 4))])
@pytest.mark.parametrize("total", [False, True])
def test_means_and_sums_over_any_axes_are_exact_sums_of_codes(
    dims: tuple[int, int] | int, shape: tuple[int, ...], total: bool
) -> None:
    x, y = Encoding(0.02, 3), Encoding(0.5 if total else 0.03, 7, 2, 250)
    codes = torch.randint(0, 256, shape, dtype=torch.uint8)
    axes = (dims,) if isinstance(dims, int) else dims
    module = IntegerMean(x, y, Mean((), axes, keepdim=False, total=total))
    sums = (codes.numpy().astype(np.int64) - 3).sum(axis=axes)
    count = 1 if total else np.prod([shape[a] for a in axes])
    real = sums.astype(np.float32) * (np.float32(0.02) / np.float32(count))
    expected = np.clip(np.rint(real / np.float32(y.scale)) + 7, 2, 250)
    np.testing.assert_array_equal(module(codes).numpy(), expected)


def test_a_converted_model_is_refused() -> None:
    x = torch.randn(8, 6)
    prepared = qat.prepare(nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 3)).eval(), "w8a8", x)
    qat.calibrate(prepared, [x])
    integer = qat.convert(prepared)
    with pytest.raises(ValueError, match=r"an integer model already: pass what qat\.prepare returned"):
        qat.convert(integer)


@pytest.mark.parametrize("policy", ["w8a8", "w4", "w8_dynamic"])
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_number_that_is_not_finite_is_named_wherever_it_is(policy: str, value: float) -> None:
    """Some would leave no trace in the file: a running variance that is infinite is a gain of zero."""
    x = torch.randn(4, 2, 6, 6)
    layers = nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.LayerNorm(64), nn.Linear(64, 3)
    prepared = qat.prepare(nn.Sequential(*layers).eval(), policy, x)
    qat.calibrate(prepared, [x])
    names = [name for name, _ in prepared.named_parameters()]
    for name in [*names, "1.running_mean", "1.running_var"]:
        broken = copy.deepcopy(prepared)
        with torch.no_grad():
            broken.state_dict()[name].reshape(-1)[0] = value
        with pytest.raises(ValueError, match=f"^'{re.escape(name)}' is not finite: its training diverged; lower the"):
            qat.convert(broken)


def test_a_mask_of_0_and_minus_infinity_is_no_divergence() -> None:
    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(6, 3)
            self.mask = nn.Parameter(torch.tensor([0.0, -torch.inf, 0.0]), requires_grad=False)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.softmax(self.layer(x) + self.mask, -1)

    x = torch.randn(8, 6)
    prepared = qat.prepare(Masked().eval(), "w8", x)
    qat.calibrate(prepared, [x])
    torch.testing.assert_close(qat.convert(prepared)(x), prepared(x))


@pytest.mark.parametrize("factor", [1e22, 1e30])
def test_scales_that_float32_cannot_hold_are_refused(factor: float) -> None:
    """Weights and inputs are finite, and their products are not."""
    x = torch.randn(8, 6)
    prepared = qat.prepare(nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 3)).eval(), "w8a8", x)
    qat.calibrate(prepared, [x])
    with torch.no_grad():
        for parameter in prepared.parameters():
            parameter.mul_(factor)
    with pytest.raises(ValueError, match=r"of '0.weight' is not finite: its training diverged, lower the"):
        qat.convert(prepared)


@pytest.mark.parametrize("network", [OptionA, Gate])
def test_a_copied_or_saved_integer_model_comes_back_as_what_it_was(network, tmp_path):
    prepared = qat.prepare(build(network), "w4a8", images(2))
    qat.calibrate(prepared, [images(8)])
    integer = qat.convert(prepared)
    torch.save(integer, tmp_path / "integer.pt")
    x = images(4, 3)
    for other in (copy.deepcopy(integer), torch.load(tmp_path / "integer.pt", weights_only=False)):
        assert isinstance(other, IntegerModel)
        assert torch.equal(other(x), integer(x))
        assert other.codes(x)[1].keys() == integer.codes(x)[1].keys()
        assert fingerprint(other) == fingerprint(integer)
        assert other.policy == integer.policy is not None
        next(other.buffers()).zero_()
        assert fingerprint(other) != fingerprint(integer), "no memory in common"


class ReadsTypes(nn.Module):
    """Casts back to the type that its activations have, as RMSNorm of many language models does, and tells it."""

    def __init__(self):
        super().__init__()
        self.first, self.gain, self.last = nn.Linear(8, 8), nn.Parameter(torch.full((8,), 0.3)), nn.Linear(8, 4)

    def forward(self, x):
        x = torch.tanh(self.first(x))
        scaled = (x.double() * 0.7).to(x.dtype) * self.gain.to(dtype=x.transpose(0, 1).dtype)
        return self.last(scaled + x), x.dtype, x.is_floating_point(), torch.is_floating_point(x)


def test_codes_have_the_type_of_the_floats_that_they_stand_for():
    prepared = qat.prepare(build(ReadsTypes), "w8a8", torch.randn(4, 8)).eval()
    x = torch.randn(32, 8, generator=torch.Generator().manual_seed(0))
    qat.calibrate(prepared, [x])
    with torch.no_grad():
        trained, deployed = prepared(x), qat.convert(prepared)(x)
    assert (trained[0] - deployed[0]).abs().mean() < 0.02 * trained[0].std()
    assert trained[1:] == deployed[1:] == (torch.float32, True, True)


class ReadsAllParts(nn.Module):
    """Splits a tensor with codes, and reads the parts together."""

    def __init__(self, function):
        super().__init__()
        self.first, self.last, self.function = nn.Linear(6, 8), nn.Linear(8, 2), function

    def forward(self, x):
        return self.last(self.function(self.first(x)))


@pytest.mark.parametrize(
    "function",
    [
        lambda h: torch.cat(h.chunk(2, 1), 1),
        lambda h: torch.cat(h.chunk(2, 1)[::-1], 1),
        lambda h: torch.cat(torch.split(h, [3, 5], 1)[0:2], 1),
        lambda h: torch.stack(h.unbind(1), 1),
    ],
    ids=["chunk", "reversed", "some", "unbind"],
)
def test_parts_that_are_read_together_are_floats(function):
    x = torch.randn(32, 6, generator=torch.Generator().manual_seed(0))
    prepared = qat.prepare(build(lambda: ReadsAllParts(function)), "w8a8").eval()
    qat.calibrate(prepared, [x])
    with torch.no_grad():
        trained, deployed = prepared(x), qat.convert(prepared)(x)
    assert (trained - deployed).abs().mean() < 0.02 * trained.std()


class BranchesOnItsMask(nn.Module):
    """Without its optional argument, forward has a graph; with it, forward depends on values."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(6, 8), nn.Linear(8, 2)

    def forward(self, x, mask=None):
        h = self.first(x).relu()
        if mask is not None:
            h = h * mask.unsqueeze(1).float() * (2 if bool(mask.all()) else 1)
        return self.last(h)


def test_an_integer_model_takes_the_optional_arguments_of_its_example():
    x, mask = torch.randn(8, 6), torch.arange(8) > 2
    prepared = qat.prepare(BranchesOnItsMask().eval(), "w8a8", (x, mask))
    qat.calibrate(prepared, [(x, mask)])
    integer = qat.convert(prepared)
    for given in (mask, mask | True):
        torch.testing.assert_close(integer(x, given), prepared(x, given))


class OneNumber(nn.Module):
    def __init__(self, name, value):
        super().__init__()
        self.register_parameter(name, nn.Parameter(torch.tensor([value])))


class AlikeWithoutDots(nn.Module):
    """Two parameters that have one name if underscores stand for dots, and a module with the name of a movement of codes."""

    def __init__(self):
        super().__init__()
        self.layer, self.layer_norm = OneNumber("norm_weight", 2.0), OneNumber("weight", 10.0)
        self.first, self.transpose_codes = nn.Linear(3, 3), nn.Linear(3, 3)

    def forward(self, x):
        y = torch.relu(self.first(x)).transpose(1, 2)
        return torch.erf(self.transpose_codes(y) * self.layer.norm_weight) * self.layer_norm.weight


@pytest.mark.parametrize("form", [lambda integer: integer, to_pt2e])
def test_names_that_are_alike_without_dots_are_not_mixed_up(form):
    torch.manual_seed(0)
    prepared = qat.prepare(AlikeWithoutDots().eval(), "w8a8", x := torch.randn(2, 3, 3))
    qat.calibrate(prepared, [x])
    integer = form(qat.convert(prepared))
    torch.testing.assert_close(integer(x), prepared(x), atol=0.1, rtol=0)


@pytest.mark.parametrize(
    "network",
    [
        pytest.param(nn.Sequential(nn.Conv2d(3, 4, 3), nn.AvgPool2d(2, 1, 1, count_include_pad=False)), id="AvgPool2d"),
        pytest.param(nn.Sequential(nn.Conv2d(3, 4, 3), nn.AvgPool2d(3)), id="global AvgPool2d"),
        pytest.param(nn.Sequential(nn.Conv2d(3, 4, 3), nn.MaxPool2d(2)), id="MaxPool2d"),
        pytest.param(nn.Sequential(nn.ConvTranspose2d(3, 4, 3, stride=2)), id="ConvTranspose2d"),
        pytest.param(nn.Sequential(nn.Flatten(0, 1), nn.ConvTranspose1d(15, 4, 3, stride=2)), id="ConvTranspose1d"),
        pytest.param(nn.Sequential(nn.Flatten(0, 1), nn.Conv1d(15, 4, 3), nn.AvgPool1d(2, padding=1)), id="AvgPool1d"),
    ],
)
def test_one_sample_without_an_axis_of_samples_is_computed_as_in_torch(network, tmp_path):
    torch.manual_seed(0)
    x = torch.randn(3, 5, 5)
    for layer in network:
        if hasattr(layer, "reset_parameters"):
            layer.reset_parameters()  # whatever was imported before
    last = nn.Conv1d(4, 2, 1) if isinstance(network[0], nn.Flatten) else nn.Conv2d(4, 2, 1)
    prepared = qat.prepare(nn.Sequential(*network, nn.ReLU(), last).eval(), "w8a8", x)
    qat.calibrate(prepared, [x])
    integer = qat.convert(prepared)
    torch.testing.assert_close(integer(x), prepared(x), atol=0.02, rtol=0)
    with pytest.raises(ValueError, match=r"has no axis of samples, and ONNX convolves batches alone: .* x\[None\]"):
        qat.export_onnx(integer, x, tmp_path / "model.onnx", dynamic={})


@pytest.mark.parametrize(("inputs", "outputs", "groups"), [(8, 4, 4), (4, 8, 4), (4, 4, 4), (6, 4, 2)])
def test_transposed_convolutions_in_groups_have_scales_that_fit(inputs, outputs, groups):
    torch.manual_seed(0)
    network = nn.Sequential(nn.ConvTranspose2d(inputs, outputs, 3, groups=groups), nn.ReLU(), nn.Conv2d(outputs, 3, 1))
    prepared = qat.prepare(network.eval(), "w8a8", x := torch.randn(2, inputs, 5, 5))
    qat.calibrate(prepared, [x])
    torch.testing.assert_close(qat.convert(prepared)(x), prepared(x), atol=0.02, rtol=0)


MEMORY = {
    "as_strided": lambda x: x.transpose(0, 1).contiguous().as_strided((9, 6), (6, 1)),
    "stride": lambda x: x.as_strided((9, 6), (x.transpose(0, 1).contiguous().stride(1), 1)),
    "view of bits": lambda x: x.view(torch.int32).float() * 1e-9,
    "view of bits by name": lambda x: x.view(dtype=torch.int32).float() * 1e-9,
    "view by name": lambda x: x.transpose(0, 1).contiguous().view(size=(20, 6)),
}


class ReadsMemory(nn.Module):
    def __init__(self, read):
        super().__init__()
        self.first, self.second, self.read = nn.Linear(6, 6), nn.Linear(6, 6), read

    def forward(self, x):
        return self.second(self.read(torch.relu(self.first(x))))


@pytest.mark.parametrize("name", MEMORY)
def test_what_is_read_off_memory_is_that_of_floats_in_their_order(name):
    torch.manual_seed(0)
    prepared = qat.prepare(ReadsMemory(MEMORY[name]).eval(), "w8a8", x := torch.randn(4, 5, 6))
    qat.calibrate(prepared, [x])
    torch.testing.assert_close(qat.convert(prepared)(x), prepared(x), atol=0.02, rtol=0)
