"""What comes back from a folder is what was saved: codes, outputs, sizes, and it goes on learning."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import qat
from qat.export.packed.tensors import TensorReader, TensorWriter
from qat.integer import IntegerModel
from qat.nn import quantized_weights
from qat.quantizers import LSQ
from tests.export.packed.networks import (
    Autoencoder,
    Branching,
    Functional,
    Recurrent,
    Tied,
    convolutions,
    step,
    trained,
    weights_alone,
)

Policy = str | Mapping[str, Any]

IMAGES: list[Policy] = [
    "w4a8",
    "w2a2",
    "w3",
    "w8_dynamic",
    {"preset": "w4a8", "rules": {"mine": {"match": "3", "weight": {"bits": 2}, "activation": {"bits": 4}}}},
    weights_alone(4, match="type:Linear", granularity="per_group", group_size=4, quantizer="Static"),
    weights_alone(5, granularity="per_tensor", symmetric=False),
    weights_alone(4, quantizer="NF4"),
    weights_alone(3, quantizer="APoT"),
    weights_alone(2, quantizer="KMeans"),
    weights_alone(2, quantizer="Binary"),
    weights_alone(2, quantizer="Ternary"),
]
OTHERS: list[tuple[Callable[[], nn.Module], Tensor, Policy]] = [
    (Functional, torch.randn(8, 4), "w4"),
    (Functional, torch.randn(8, 4), "w4a8"),
    (Tied, torch.randint(40, (3, 7)), "w4"),
    (Recurrent, torch.randn(4, 6, 8), "w4"),
    (Branching, torch.randn(4, 8), "w4a8"),
]


def size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.iterdir())


def codes(prepared: nn.Module) -> list[Tensor]:
    return [q.quantize(weight) for m in prepared.modules() for _, weight, q in quantized_weights(m)]


def assert_same(found: nn.Module, expected: nn.Module, x: Tensor) -> None:
    with torch.no_grad():
        mine, other = found(x), expected(x)
    torch.testing.assert_close(mine, other, rtol=1e-6, atol=1e-6)  # sums in float depend on where memory lies
    if isinstance(expected, IntegerModel):
        assert isinstance(found, IntegerModel)
        mine, other = found.codes(x)[1], expected.codes(x)[1]
        assert mine.keys() == other.keys()
        assert all(torch.equal(mine[name], other[name]) for name in mine)


@pytest.mark.parametrize("policy", IMAGES, ids=str)
def test_networks_of_torch_nn_come_back_from_the_folder_alone(policy: Policy, tmp_path: Path) -> None:
    x = torch.randn(4, 3, 6, 6)
    prepared = trained(convolutions(), policy, x)
    before = copy.deepcopy(prepared.state_dict())
    loaded = qat.load_quantized(qat.save_quantized(prepared, tmp_path / "prepared"))
    assert all(torch.equal(value, before[name]) for name, value in prepared.state_dict().items())  # it is not touched
    assert_same(loaded, prepared, x)
    assert all(map(torch.equal, codes(loaded), codes(prepared)))
    integer = qat.convert(prepared)
    assert_same(qat.convert(loaded), integer, x)
    assert_same(qat.load_quantized(qat.save_quantized(integer, tmp_path / "integer")), integer, x)


@pytest.mark.parametrize(("network", "x", "policy"), OTHERS, ids=lambda p: str(getattr(p, "__name__", ""))[:20])
def test_networks_of_other_classes(network: Callable[[], nn.Module], x: Tensor, policy: Policy, tmp_path: Path) -> None:
    prepared = trained(network(), policy, x)
    qat.save_quantized(prepared, tmp_path / "prepared")
    with pytest.raises(ValueError, match=rf"model={network.__name__}\("):
        qat.load_quantized(tmp_path / "prepared")
    given = network()
    values = copy.deepcopy(given.state_dict())
    for model in (network, given):
        assert_same(qat.load_quantized(tmp_path / "prepared", model), prepared, x)
    assert all(torch.equal(value, values[name]) for name, value in given.state_dict().items())
    integer = qat.convert(prepared)
    qat.save_quantized(integer, tmp_path / "integer")
    needed = None if isinstance(integer, IntegerModel) else network
    assert_same(qat.load_quantized(tmp_path / "integer", needed), integer, x)


def test_it_goes_on_learning_as_the_network_of_its_codes_would(tmp_path: Path) -> None:
    """As a copy of the prepared network whose float weights are set to their quantized values."""
    x = torch.randn(4, 3, 6, 6)
    prepared = trained(convolutions(), "w4a8", x)
    prepared[0].weight.requires_grad_(False)
    loaded = qat.load_quantized(qat.save_quantized(prepared, tmp_path))
    with torch.no_grad():
        for module in prepared.modules():
            for _, weight, quantizer in quantized_weights(module):
                weight.copy_(quantizer(weight))
    for network in (prepared, loaded):
        step(network, x, 3)
    expected = prepared.state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in loaded.state_dict().items())
    assert not loaded[0].weight.requires_grad


def test_tied_weights_are_stored_once_and_stay_tied_when_their_codes_differ(tmp_path: Path) -> None:
    x = torch.randint(40, (3, 7))
    prepared = trained(Tied(), qat.load_policy("w4", first_last_bits=None), x)
    prepared.head.weight_quantizer.scale.data *= 1.1
    words, head = (q.quantize(prepared.words.weight) for q in (
        prepared.words.weight_quantizer, prepared.head.weight_quantizer))  # fmt: skip
    assert not torch.equal(words, head)
    loaded = qat.load_quantized(qat.save_quantized(prepared, tmp_path), Tied)
    assert loaded.head.weight is loaded.words.weight
    assert_same(loaded, prepared, x)
    integer = qat.convert(prepared)
    assert_same(qat.load_quantized(qat.save_quantized(integer, tmp_path)), integer, x)


def test_a_weight_that_is_tied_to_itself_transposed_stays_a_float_with_other_codes(tmp_path: Path) -> None:
    x = torch.randn(5, 6)
    prepared = trained(Autoencoder(), "w4a8", x)
    with pytest.warns(
        UserWarning, match=r"stored in float \(weight: it is read with its axes as they are and exchanged, in"
    ):
        folder = qat.save_quantized(prepared, tmp_path)
    assert_same(qat.load_quantized(folder, Autoencoder), prepared, x)


@pytest.mark.parametrize("bits", [1, 2, 3, 4, 8])
def test_the_size_is_bits_times_weights(bits: int, tmp_path: Path) -> None:
    """Also of one bit, with the quantizer that has two levels; tied weights and equal layers cost nothing more."""
    model = nn.Sequential(nn.Linear(2000, 64), nn.ReLU(), nn.Linear(64, 2000), nn.Linear(2000, 64, bias=False))
    model[3].weight = model[0].weight
    quantizer = {"quantizer": "Binary", "bits": 2} if bits == 1 else {"quantizer": "Static", "bits": bits}
    policy = {
        "rules": {"all": {"match": "*", "weight": {"granularity": "per_tensor", **quantizer}, "activation": None}}
    }
    prepared = qat.prepare(model, qat.load_policy(policy))
    qat.calibrate(prepared, [torch.randn(2, 2000)])
    promised = bits / 8 * 2 * 2000 * 64 + 4 * 2064
    extra = 8000  # names and the manifest
    assert promised <= size(qat.save_quantized(prepared, tmp_path / "a")) < 1.05 * promised + extra
    assert size(qat.save_quantized(qat.convert(prepared), tmp_path / "b")) < 1.05 * promised + extra


@pytest.mark.slow
@pytest.mark.parametrize(("policy", "megabytes"), [("w4", 6.0), ("w2", 3.2)])
def test_resnet18_is_as_small_as_promised(policy: str, megabytes: float, tmp_path: Path) -> None:
    import torchvision

    prepared = qat.prepare(torchvision.models.resnet18(), qat.load_policy(policy, first_last_bits=None))
    x = torch.randn(2, 3, 64, 64)
    qat.calibrate(prepared, [x])
    prepared.eval()
    for name, model in (("prepared", prepared), ("integer", qat.convert(prepared))):
        assert size(qat.save_quantized(model, tmp_path / name)) <= 1e6 * megabytes
        assert_same(qat.load_quantized(tmp_path / name), model, x)


def test_weights_that_codes_do_not_determine_stay_float_and_say_so(tmp_path: Path) -> None:
    x = torch.randn(8, 16)
    layer = nn.utils.parametrizations.weight_norm(nn.Linear(16, 16))
    prepared = trained(nn.Sequential(layer, nn.ReLU(), nn.Linear(16, 4)), "w4", x)
    with pytest.warns(
        UserWarning, match=r"1 quantized weights are stored in float \(0.weight: it is computed of several"
    ):
        qat.save_quantized(prepared, tmp_path)
    again = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(16, 16)), nn.ReLU(), nn.Linear(16, 4))
    assert_same(qat.load_quantized(tmp_path, again), prepared, x)


def test_half_precision_and_a_loaded_network_that_is_saved_again(tmp_path: Path) -> None:
    x = torch.randn(8, 16, dtype=torch.bfloat16)
    prepared = trained(nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 4)).bfloat16(), "w4", x)
    loaded = qat.load_quantized(qat.save_quantized(prepared, tmp_path / "a"))
    assert loaded[0].weight.dtype == torch.bfloat16
    assert_same(loaded, prepared, x)
    assert_same(qat.load_quantized(qat.save_quantized(loaded, tmp_path / "b")), prepared, x)


def test_a_quantizer_of_ones_own_is_named_by_the_caller(tmp_path: Path) -> None:
    x = torch.randn(8, 16)
    prepared = trained(nn.Sequential(nn.Linear(16, 4)), weights_alone(4, quantizer=Mine), x)
    qat.save_quantized(prepared, tmp_path)
    with pytest.raises(ValueError, match=r"allow=\[Mine\]"):
        qat.load_quantized(tmp_path)
    assert_same(qat.load_quantized(tmp_path, allow=[Mine]), prepared, x)


class Mine(LSQ):
    pass


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (nn.Linear(2, 2), "was not made by qat.prepare"),
        (nn.Sequential(qat.prepare(nn.Sequential(nn.Linear(2, 2)), "w8")), r"save that one, .*model\.0"),
        (qat.prepare(nn.Sequential(nn.Linear(2, 2)), "w8a8"), "has no range"),
    ],
)
def test_what_cannot_be_saved(model: nn.Module, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        qat.save_quantized(model, tmp_path / "folder")
    assert not (tmp_path / "folder").exists()


def test_a_network_that_does_not_fit(tmp_path: Path) -> None:
    qat.save_quantized(trained(Functional(), "w4", torch.randn(8, 4)), tmp_path)
    other = Functional()
    other.extra = nn.Parameter(torch.zeros(1))
    wide = Functional()
    wide.v = nn.Parameter(torch.zeros(6, 9))
    for model, message in (
        (other, "has no 'extra'"),
        (wide, r"'v' has the shape \[6, 3\]"),
        (nn.Linear(2, 2), "it has no 'weight'"),
    ):
        with pytest.raises(ValueError, match=message):
            qat.load_quantized(tmp_path, model)


def test_names_of_modules_need_not_be_names_of_python(tmp_path: Path) -> None:
    """As in torchvision's RegNet."""
    x = torch.randn(8, 16)
    model = nn.Sequential()
    model.add_module("block-0", nn.Linear(16, 16))
    model.add_module("last", nn.Linear(16, 4))
    prepared = trained(model, "w4a8", x)
    for network in (prepared, qat.convert(prepared)):
        assert_same(qat.load_quantized(qat.save_quantized(network, tmp_path)), network, x)


def test_a_module_in_two_places_stays_one(tmp_path: Path) -> None:
    x = torch.randn(8, 16)
    layer, relu = nn.Linear(16, 16), nn.ReLU()
    for policy in ("w4a8", weights_alone(4)):
        prepared = trained(nn.Sequential(layer, relu, layer, relu, nn.Linear(16, 4)), policy, x)
        loaded = qat.load_quantized(qat.save_quantized(prepared, tmp_path))
        assert loaded[0] is loaded[2]
        assert_same(loaded, prepared, x)
        integer = qat.convert(prepared)
        assert_same(qat.load_quantized(qat.save_quantized(integer, tmp_path)), integer, x)


class Positions(nn.Embedding):
    """Looks an entry further on, as OPT's positions do; a class of embeddings has no `bias`."""

    def forward(self, places: Tensor) -> Tensor:
        return super().forward(places + 2)


def test_an_embedding_of_ones_own_in_an_integer_model(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, places = nn.Sequential(Positions(12, 4), nn.Linear(4, 3)), torch.arange(10).reshape(2, 5)
    prepared = qat.prepare(model, "w4", places)
    qat.calibrate(prepared, [places])
    integer = qat.convert(prepared)
    assert torch.equal(integer(places), prepared.eval()(places))
    assert torch.equal(qat.load_quantized(qat.save_quantized(integer, tmp_path))(places), integer(places))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.int8, torch.bool], ids=str)
def test_constant_tensors_come_back_to_the_bit(dtype: torch.dtype) -> None:
    """0.0 and -0.0 are equal, and so are 1, 1.0 and true."""
    writer = TensorWriter()
    values = (0.0, -0.0, 1.0, float("nan")) if dtype.is_floating_point else (0, 1)
    tensors = {f"{value}": torch.full((3, 2), value).to(dtype) for value in values}
    for name, tensor in tensors.items():
        writer.add(name, tensor)
    reader = TensorReader(writer.stored, json.loads(json.dumps(writer.index())))
    for name, tensor in tensors.items():
        assert reader[name].dtype == dtype
        assert torch.equal(reader[name].view(torch.uint8), tensor.view(torch.uint8)), name
