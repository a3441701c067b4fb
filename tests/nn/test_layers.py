import copy
import pickle
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

import qat.nn
from qat import Grid, Mode, PerChannel, QuantSpec
from qat.nn import LAYERS, as_quantized, channel_axis, is_layer, is_quantized, layer_type, quantize_layer
from qat.quantizers import LSQ, Static

MAKE: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "Conv1d": (lambda: nn.Conv1d(4, 6, 3, stride=2, padding=1, groups=2), (2, 4, 9)),
    "Conv1d_reflect": (lambda: nn.Conv1d(4, 6, 3, padding=2, padding_mode="reflect", bias=False), (2, 4, 9)),
    "Conv2d": (lambda: nn.Conv2d(4, 6, 3, stride=2, padding=1, dilation=2), (2, 4, 9, 9)),
    "Conv2d_depthwise": (lambda: nn.Conv2d(4, 4, 3, groups=4, padding="same"), (2, 4, 9, 9)),
    "Conv3d": (lambda: nn.Conv3d(2, 4, 2), (2, 2, 3, 4, 3)),
    "ConvTranspose1d": (lambda: nn.ConvTranspose1d(4, 6, 3, stride=2, groups=2), (2, 4, 5)),
    "ConvTranspose2d": (lambda: nn.ConvTranspose2d(4, 6, 3, stride=2, output_padding=1), (2, 4, 5, 5)),
    "ConvTranspose2d_depthwise": (lambda: nn.ConvTranspose2d(4, 4, 3, groups=4), (2, 4, 5, 5)),
    "ConvTranspose3d": (lambda: nn.ConvTranspose3d(2, 4, 2), (2, 2, 3, 3, 2)),
    "Embedding": (lambda: nn.Embedding(5, 4, padding_idx=1), (3, 2)),
    "Linear": (lambda: nn.Linear(4, 6), (2, 4)),
    "Linear_3d": (lambda: nn.Linear(4, 6, bias=False), (2, 5, 4)),
}
every = pytest.mark.parametrize("name", MAKE)


def layer(name: str) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    made, shape = MAKE[name][0](), MAKE[name][1]
    return made, torch.randint(0, 5, shape) if name == "Embedding" else torch.randn(shape)


def on(layer: nn.Module, input_bits: int | None = None) -> nn.Module:
    shape = tuple(layer.weight.shape)
    granularity = PerChannel(channel_axis(layer))
    weight = LSQ(QuantSpec(Grid(4, narrow=True), granularity), shape)
    weight.set_range(*torch.aminmax(granularity.rows(layer.weight.detach()), dim=1))
    if input_bits is None:
        return quantize_layer(layer, weight)
    source = Static(QuantSpec(Grid(input_bits)))
    source.set_range(torch.tensor([-3.0]), torch.tensor([3.0]))
    return quantize_layer(layer, weight, source)


@every
def test_it_is_the_float_layer_on_the_rounded_weight(name: str) -> None:
    float_layer, x = layer(name)
    ours = on(layer(name)[0])
    with torch.no_grad():
        float_layer.weight.copy_(ours.weight_quantizer(float_layer.weight))
    assert torch.equal(ours(x), float_layer(x))
    assert not torch.equal(float_layer.weight, ours.weight)


@every
def test_with_an_input_quantizer_the_input_is_rounded_too(name: str) -> None:
    _, x = layer(name)
    ours, both = on(layer(name)[0]), on(layer(name)[0], input_bits=3)
    assert torch.equal(both(x), ours(both.input_quantizer(x)))
    assert torch.equal(both(x), ours(x)) is not x.is_floating_point()  # indices are never rounded


@every
def test_off_and_none_are_the_float_layer(name: str) -> None:
    float_layer, x = layer(name)
    ours = on(layer(name)[0], input_bits=3)
    ours.weight_quantizer.mode = ours.input_quantizer.mode = Mode.OFF
    assert torch.equal(ours(x), float_layer(x))
    assert torch.equal(quantize_layer(layer(name)[0], None)(x), float_layer(x))


@every
def test_object_parameters_hooks_and_names_stay(name: str) -> None:
    float_layer, x = layer(name)
    before = dict(float_layer.named_parameters())
    calls: list[int] = []
    float_layer.register_forward_hook(lambda *_: calls.append(1))
    ours = on(float_layer)
    assert ours is float_layer
    assert is_quantized(ours)
    assert as_quantized(ours).weight is before["weight"]
    assert [n for n in ours.state_dict() if "quantizer" not in n] == list(before)
    ours(x)
    assert calls == [1]


@every
def test_gradients_reach_weight_bias_input_and_scale(name: str) -> None:
    model, x = layer(name)
    ours = on(model)
    inputs = [x.requires_grad_()] if x.is_floating_point() else []
    ours(x).square().sum().backward()
    for tensor in [*inputs, *ours.parameters()]:
        assert tensor.grad is not None
        assert tensor.grad.abs().sum() > 0


def test_every_layer_type_has_its_class_and_both_are_exported() -> None:
    for source, ours in LAYERS.items():
        assert issubclass(ours, source)
        assert getattr(qat.nn, ours.__name__) is ours
        assert source.__name__ in MAKE
        float_layer = source(2, 2, *([1] if issubclass(source, _ConvNd) else []))
        assert is_layer(float_layer)
        assert not is_quantized(float_layer)
        assert layer_type(ours(2, 2, *([1] if issubclass(source, _ConvNd) else []))) is source


class Renamed(nn.Linear):
    """Computes what its base computes."""


class Doubled(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


class Padded(nn.Conv2d):
    def _conv_forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return super()._conv_forward(F.pad(x, (0, 1, 0, 1)), weight, bias)


def test_a_layer_is_what_it_computes() -> None:
    assert is_layer(Renamed(2, 2))
    assert not any(is_layer(m) for m in (Doubled(2, 2), Padded(2, 2, 2), nn.Embedding(2, 2, max_norm=1.0)))
    attention = nn.MultiheadAttention(4, 2)
    assert not is_layer(attention.out_proj)  # its weight is read past its forward
    patched = nn.Linear(2, 2)
    patched.forward = lambda x: x
    assert not is_layer(patched)


@pytest.mark.parametrize("again", [copy.deepcopy, copy.copy, lambda layer: pickle.loads(pickle.dumps(layer))])
def test_a_quantized_subclass_stays_one_and_is_copied_and_pickled(again: Callable[[nn.Module], nn.Module]) -> None:
    torch.manual_seed(0)
    ours = quantize_layer(Renamed(4, 3), None)
    x = torch.randn(2, 4)
    result = again(ours)
    assert isinstance(result, Renamed)
    assert is_quantized(result)
    assert torch.equal(result(x), ours(x))
