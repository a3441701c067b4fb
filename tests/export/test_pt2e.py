"""Modules of quantized_decomposed operations: the codes of the integer model, from a module and from a file."""

import copy
import hashlib
import json
import operator
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import qat
from qat.export.pt2e import export_pt2e
from qat.export.pt2e.layers import Pt2eLayer
from qat.export.pt2e.program import load_program
from qat.export.targets import target_named
from qat.export.verification import DamagedFileError, OtherModelError
from qat.integer import IntegerModel
from qat.integer import modules as integer_modules
from qat.integer.layers import IntegerLayer
from qat.integer.weight_only import WeightOnlyModule
from tests.export.test_portable import Moving
from tests.networks import INTEGER, Gate, build, images


def moves(x: Tensor) -> Tensor:
    """Moves with a module, several results, a cast through float and one of its arguments a size."""
    x = F.max_pool2d(F.pad(x, (1, 0, 0, 1)), 2)[:, ::2].mT
    return F.interpolate(x.chunk(2, 1)[1], scale_factor=2).reshape(x.shape[0], -1)


class Upsampling(nn.Module):
    """Transposed convolutions, one of them in groups; and a convolution whose sides are padded differently."""

    def __init__(self) -> None:
        super().__init__()
        self.whole = nn.ConvTranspose2d(3, 6, 3, stride=2, padding=1, output_padding=1)
        self.groups = nn.ConvTranspose2d(6, 4, 2, stride=2, groups=2)
        self.uneven = nn.Conv2d(4, 2, 4, padding="same")

    def forward(self, x: Tensor) -> Tensor:
        return self.uneven(F.relu(self.groups(F.relu(self.whole(x)))))


NETWORKS: dict[str, tuple[Callable[[], nn.Module], Any]] = {
    "residual, 4 bits": (INTEGER[0], "w4a4"),
    "signed behind ReLU": (INTEGER[0], {"preset": "w8a8", "activation": {"signed": True}}),
    "depthwise": (INTEGER[1], "w8a8"),
    "concatenation": (INTEGER[2], "w2a2"),
    "three axes": (INTEGER[3], "w8a8"),
    "look-ups": (Gate, "w4a8"),
    "moves": (lambda: Moving(moves, 512), "w8a8"),
    "matmul": (lambda: Moving(lambda x: (x @ x.mT) * x, 2048), "w8a8"),
    "transposed": (Upsampling, "w8a8"),
    "weights alone": (INTEGER[0], "w4"),
    "dynamic": (INTEGER[3], "w8_dynamic"),
}


def integer_model(name: str, seed: int = 0) -> IntegerModel:
    network, policy = NETWORKS[name]
    prepared = qat.prepare(build(network, seed), policy, images(2))
    qat.calibrate(prepared, [images(16)])
    integer = qat.convert(prepared)
    assert isinstance(integer, IntegerModel)
    return integer


@pytest.mark.filterwarnings("ignore:Using padding=.same. with even kernel")
@pytest.mark.parametrize(
    ("name", "for_litert"),
    [
        *((name, False) for name in NETWORKS),
        ("concatenation", True),
        ("transposed", True),
        ("residual, 4 bits", True),
    ],
)
def test_codes_are_those_of_the_integer_model(name: str, for_litert: bool) -> None:
    integer = integer_model(name)
    module = qat.to_pt2e(integer, for_litert)
    codes: dict[str, Tensor] = {}
    x = images(8, seed=2)
    with torch.no_grad():
        output, expected = integer.codes(x)
        for site in expected.keys() & dict(module.named_modules()).keys():
            hook = lambda _m, _i, made, site=site: codes.__setitem__(site, made)  # noqa: E731
            module.get_submodule(site).register_forward_hook(hook)
        got = module(x)
    static = {n: c for n, c in expected.items() if integer.get_submodule(n).output is not None}
    assert len(static) >= (0 if name in ("weights alone", "dynamic") else 3)
    for site, ours in static.items():
        assert codes[site].dtype == torch.int8
        distance = (ours.int() - (codes[site].int() + 128)).abs()
        assert int(distance.max()) <= 1, site
        assert int(distance.sum()) <= 1e-3 * ours.numel(), site
        assert int(ours.max()) > int(ours.min())
    torch.testing.assert_close(got, output, rtol=0, atol=1e-2 * float(output.abs().max()))


def test_weights_are_int8_and_what_was_converted_is_not_changed() -> None:
    integer = integer_model("residual, 4 bits")
    before = {name: x.clone() for name, x in integer.state_dict().items()}
    module = qat.to_pt2e(integer)
    assert torch.equal(module.conv1.weight, integer.conv1.weight)
    assert module.conv1.weight.dtype == torch.int8
    module.conv1.weight.zero_()
    assert all(torch.equal(x, before[name]) for name, x in integer.state_dict().items())


@pytest.mark.parametrize("name", ["residual, 4 bits", "concatenation", "transposed"])
def test_a_bias_is_whole_in_units_of_one_product(name: str) -> None:
    """Backends store it as int32 in these units; the integer model's is whole in finer ones where weights have few bits."""
    integer = integer_model(name)
    forms = dict(qat.to_pt2e(integer).named_modules())
    seen = 0
    for site, layer in integer.named_modules():
        if isinstance(layer, IntegerLayer) and isinstance(form := forms[site], Pt2eLayer):
            units = form.bias.double() / (layer.input.scale * form.weight_scale.double())
            assert float((units - layer.bias.double()).abs().max()) < 1e-2 + 1e-6 * float(layer.bias.abs().max()), site
            seen += layer.product_units > 1
    assert seen or name == "transposed"


@pytest.mark.parametrize("for_litert", [False, True])
def test_codes_on_another_grid_are_a_product_with_one(for_litert: bool) -> None:
    """XNNPACK rounds the ratio of a mere requantization to a 256th."""
    integer = integer_model("residual, 4 bits")
    module = qat.to_pt2e(integer, for_litert)
    sites = [name for name, m in integer.named_modules() if type(m) is integer_modules.Requantize]
    assert sites
    for site in sites:
        form = module.get_submodule(site)
        graph = torch.fx.Tracer().trace(form)
        products = [n for n in graph.nodes if n.target in (torch.mul, operator.mul) and len(n.all_input_nodes) == 2]
        assert [["dequantize" in x.name for x in n.all_input_nodes] for n in products] == [[True, True]]


@pytest.mark.parametrize("for_litert", [False, True])
def test_the_parts_of_a_concatenation_are_on_its_grid_by_products_with_one(for_litert: bool) -> None:
    """litert-torch takes two quantizations in a row for one, and with the first goes the ReLU that it saturates."""
    module = qat.to_pt2e(integer_model("concatenation"), for_litert)
    graph = torch.export.export(module, (images(1),)).graph
    (cat,) = (node for node in graph.nodes if node.name == "cat")
    (result,) = cat.users
    assert len(cat.all_input_nodes) == 3
    for part in cat.all_input_nodes:
        assert part.args[1:3] == result.args[1:3]
        real = part.all_input_nodes[0].all_input_nodes[0]
        assert (real if "tanh" not in real.name else real.all_input_nodes[0]).name.startswith("mul")


@pytest.mark.parametrize("dynamic", [None, {}])
def test_examples_of_another_shape_are_named(dynamic: dict | None, tmp_path: Path) -> None:
    integer = integer_model("residual, 4 bits")
    with pytest.raises(
        ValueError, match=r"the model cannot run on the example inputs .*: write them as forward is called"
    ):
        export_pt2e(integer, torch.zeros(2, 5, 8, 8), tmp_path / "m.pt2", dynamic)
    assert not list(tmp_path.iterdir())


def test_what_is_no_integer_model_is_refused() -> None:
    with pytest.raises(ValueError, match=r"Linear has no graph of integer modules: pass the result of qat\.convert"):
        qat.to_pt2e(nn.Linear(1, 1))


# The file -------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[IntegerModel, Path]:
    integer, path = integer_model("residual, 4 bits"), tmp_path_factory.mktemp("pt2e") / "m.pt2"
    target_named("pt2e").write(integer, images(1), path)
    return integer, path


def test_the_file_is_verified_site_by_site(written: tuple[IntegerModel, Path]) -> None:
    integer, path = written
    check = qat.verify(path, integer, [images(16, seed=2), images(5, seed=3)])
    assert check.passed, check
    assert (check.samples, check.top1_agreement) == (21, 1.0)
    assert {s.name.split(" (")[0] for s in check.sites} == {*integer.codes(images(1))[1], "output"}
    assert check.float_ties <= 1e-4 * check.codes_compared
    assert check.constants_compared > sum(x.numel() for n, x in integer.named_buffers() if n.endswith("weight"))
    assert check.operators["quantized_decomposed.quantize_per_tensor"] >= 10
    assert torch.equal(target_named("pt2e").network(path, threads=1)(images(3)), load_program(path).module()(images(3)))


def test_a_changed_code_and_another_model_are_seen(written: tuple[IntegerModel, Path], tmp_path: Path) -> None:
    integer, path = written
    program = load_program(path)
    weight = program.state_dict["conv2.weight"].neg_()
    torch.export.save(program, tmp_path / "m.pt2")
    check = qat.verify(tmp_path / "m.pt2", integer, [images(16, seed=2)])
    assert [(d.name, d.elements) for d in check.stored] == [("conv2.weight", int(weight.count_nonzero()))]
    assert {s.name for s in check.sites if s.code_mismatches} == {"conv2"}  # not those that inherit it
    assert check.propagated > 100
    with pytest.raises(OtherModelError, match="no codes for the sites"):
        qat.verify(path, integer_model("depthwise"), [images(2)])


@pytest.mark.parametrize("policy", ["w8_dynamic", "w8_dynamic_per_token"])
def test_dynamic_ranges_are_operations_of_a_program_with_a_free_batch(policy: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)), torch.randn(8, 4)
    prepared = qat.prepare(model, policy, x, target="pt2e")
    qat.calibrate(prepared, [x])
    integer = qat.convert(prepared)
    export_pt2e(integer, x[:2], path := tmp_path / "model.pt2")
    found = qat.verify(path, integer, [x], prepared)
    assert found.passed, found
    torch.testing.assert_close(torch.export.load(path).module()(x[:5]), integer(x[:5]))


def test_weights_alone_are_proven_by_the_stored_numbers(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)), torch.randn(8, 4)
    prepared = qat.prepare(model, "w4", x, target="pt2e")
    qat.calibrate(prepared, [x])
    integer = qat.convert(prepared)
    export_pt2e(integer, x, path := tmp_path / "model.pt2")
    found = qat.verify(path, integer, [x], prepared)
    assert found.passed, found
    assert found.constants_compared > 0
    integer.get_submodule("0").codes[0, 0] ^= 1
    assert not qat.verify(path, integer, [x]).passed


def test_what_is_no_program_is_refused(tmp_path: Path) -> None:
    (tmp_path / "m.pt2").write_bytes(b"PK")
    with pytest.raises(DamagedFileError, match=r"m\.pt2 is not a program of torch\.export"):
        qat.verify(tmp_path / "m.pt2", integer_model("three axes"), [images(2)])
    with pytest.raises(DamagedFileError, match=r"m\.pt2 is not a \.pt2 file, or is damaged"):
        qat.verify(tmp_path / "m.pt2")
    with zipfile.ZipFile(tmp_path / "m.pt2", "w") as archive:
        archive.writestr("m/data", "whole")
    proof = qat.verify(tmp_path / "m.pt2")
    assert not proof.recorded
    assert not proof.passed
    assert proof.hashes == {"file": hashlib.sha256((tmp_path / "m.pt2").read_bytes()).hexdigest()}


def test_copies_of_a_recurrent_layer_in_codes_are_in_codes() -> None:
    """Oracle: the integer model that was copied, and its weights, which no copy may have as floats."""
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.LSTM(5, 4, batch_first=True)).eval(), torch.randn(2, 3, 5)
    prepared = qat.prepare(model, "w8a8", x)
    qat.calibrate(prepared, [x])
    integer = qat.convert(prepared)
    for made in (copy.deepcopy(integer), qat.to_pt2e(integer)):
        assert torch.equal(made(x)[0], integer(x)[0])
        assert type(made.get_submodule("0")) is WeightOnlyModule


class Nested(nn.Module):
    """Returns a dict with a list inside."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> dict[str, Any]:
        features = torch.relu(self.body(x))
        return {"logits": self.head(features), "features": [features, (features * 2,)]}


def test_outputs_of_any_structure_are_read_back(tmp_path: Path) -> None:
    x = torch.randn(8, 6)
    prepared = qat.prepare(Nested().eval(), "w8a8", x, target="pt2e")
    qat.calibrate(prepared, [x])
    integer = qat.convert(prepared)
    export_pt2e(integer, x, tmp_path / "m.pt2")
    assert qat.verify(tmp_path / "m.pt2", integer, [x]).passed
    found = load_program(tmp_path / "m.pt2").module(check_guards=False)(x)
    torch.testing.assert_close(found["features"][1][0], integer(x)["features"][1][0])


CHANGES: dict[str, Callable[[dict[str, Any]], Any]] = {
    "names of outputs": lambda call: call.update(
        out_spec=call["out_spec"].replace("logits", "?").replace("features", "logits").replace("?", "features")
    ),
    "names of arguments": lambda call: call.update(forward_arg_names=["y"]),
}


@pytest.mark.parametrize("changed", [*CHANGES, "range of batches", "hash of the model"])
def test_how_a_file_is_called_is_compared_too(changed: str, tmp_path: Path) -> None:
    x = torch.randn(8, 6)
    prepared = qat.prepare(Nested().eval(), "w8a8", x, target="pt2e")
    qat.calibrate(prepared, [x])
    integer = qat.convert(prepared)
    export_pt2e(integer, x, tmp_path / "good.pt2")
    with zipfile.ZipFile(tmp_path / "good.pt2") as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    (model,), (record,) = ([n for n in members if n.endswith(end)] for end in ("model.json", "qat.json"))
    content, said = json.loads(members[model]), json.loads(members[record])
    if changed in CHANGES:
        CHANGES[changed](content["graph_module"]["module_call_graph"][0]["signature"])
    elif changed == "range of batches":
        content["range_constraints"] = {size: {"min_val": 2, "max_val": 9} for size in content["range_constraints"]}
    else:
        said["model_sha256"] = "0" * 64
    with zipfile.ZipFile(tmp_path / "m.pt2", "w") as archive:
        for name, member in {**members, model: json.dumps(content), record: json.dumps(said)}.items():
            archive.writestr(name, member)
    found = qat.verify(tmp_path / "m.pt2", integer, [x])
    assert not found.passed
    assert len(found.stored) == 1
