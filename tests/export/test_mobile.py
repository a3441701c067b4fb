"""ExecuTorch and LiteRT: integer kernels, and the decisions of the integer model."""

import importlib.util
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import qat
from qat.cli.main import main
from qat.export.device import Device, Written
from qat.export.executorch import export_executorch
from qat.export.fixed_batch import run_in_parts
from qat.export.litert import export_litert
from qat.export.litert.program import int8_codes
from qat.export.pt2e.codes import SHIFT
from qat.export.pt2e.modules import FloatLookUp
from qat.export.targets import target_named, target_of_file
from qat.export.verification import DamagedFileError
from qat.integer import Encoding, IntegerModel
from qat.integer.modules import LookUp
from qat.torch_private import tree_leaves
from tests.networks import INTEGER, build, images

EXTRAS = {"executorch": "executorch", "litert": "litert_torch"}
SUFFIXES = {"executorch": ".pte", "litert": ".tflite"}


def integer_model(target: str, network: type[nn.Module] = INTEGER[0], policy: str = "w8a8") -> IntegerModel:
    prepared = qat.prepare(build(network), policy, images(2), target=target)
    qat.calibrate(prepared, [images(16)])
    integer = qat.convert(prepared)
    assert isinstance(integer, IntegerModel)
    return integer


# Without the extras ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sizes", [[2, 3], [1, 3]])
def test_batches_of_any_size_run_in_parts(sizes: list[int]) -> None:
    seen: list[list[tuple[int, ...]]] = []
    memory = torch.empty(sizes[0], 1)

    def run(tensors: list[Tensor]) -> Sequence[Tensor]:
        seen.append([tuple(x.shape) for x in tensors])
        return [torch.sum(tensors[0] * tensors[1].sum(), dim=1, keepdim=True, out=memory)]

    x, constant = torch.arange(10.0).reshape(5, 2), torch.ones(3)
    (y,) = run_in_parts(run, (x, {"of all": constant, "flag": True}), sizes)
    assert torch.equal(y, 3 * x.sum(1, keepdim=True))
    assert seen == [[(sizes[0], 2), (3,)]] * -(-5 // sizes[0])


def test_inputs_become_codes() -> None:
    x = torch.tensor([-9.0, -0.25, 0.25, 0.3, 9.0])
    assert int8_codes(x, 0.5, 3).tolist() == [-15, 3, 3, 4, 21]
    assert int8_codes(x, 0.05, -100).tolist() == [-128, -105, -95, -94, 80]


@pytest.mark.parametrize("scale", [0.013, 3.7e4, 2.0**-20])
@pytest.mark.parametrize("zero_point", [0, 77, 255])
def test_a_look_up_through_floats_finds_each_of_256_codes(scale: float, zero_point: int) -> None:
    table, codes = torch.randperm(256), torch.arange(256).reshape(2, 8, 4, 4)
    module = LookUp(table, Encoding(0.3, 9, lowest=9, highest=100))
    found = FloatLookUp(module, Encoding(scale, zero_point))((codes - SHIFT).to(torch.int8))
    assert torch.equal(found.long() + SHIFT, table[codes])


@pytest.mark.parametrize("target", EXTRAS)
def test_the_suffix_names_the_target(target: str, tmp_path: Path) -> None:
    found = target_of_file(tmp_path / f"m{SUFFIXES[target]}")
    assert found is target_named(target)
    assert found.path(Path("a/model.onnx")) == Path(f"a/model_{target}{SUFFIXES[target]}")
    with pytest.raises(ValueError, match=f"target={target} cannot run rule 'all', which quantizes on the range"):
        qat.load_policy("w8_dynamic", target=target)


@pytest.mark.parametrize(("target", "write"), [("executorch", export_executorch), ("litert", export_litert)])
def test_a_missing_package_is_named_with_its_extra(target: str, write: Any, tmp_path: Path) -> None:
    if importlib.util.find_spec(EXTRAS[target]):
        pytest.skip("it is installed")
    with pytest.raises(ImportError, match=rf"pip install 'qat-lightning\[{target}\]'"):
        write(integer_model(target), images(1), tmp_path / f"m{SUFFIXES[target]}")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("target", EXTRAS)
def test_the_command_line_names_the_extra_before_anything_is_loaded(
    target: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    output = str(tmp_path / f"m{SUFFIXES[target]}")
    assert main(["quantize", "--model", "no.py:model", "--output", output, "--method", "post_training"]) == 2
    assert f"pip install 'qat-lightning[{target}]'" in capsys.readouterr().err


FLOAT_BETWEEN_CODES = {
    "executorch": [nn.ConvTranspose2d(4, 4, 2, groups=2)],
    "litert": [nn.Conv3d(2, 4, 3), nn.ConvTranspose1d(4, 4, 2), nn.ConvTranspose2d(4, 4, 2)],
}
NO_KERNEL = {
    "executorch": [nn.Conv3d(2, 4, 3), nn.ConvTranspose3d(2, 4, 3)],
    "litert": [nn.ConvTranspose2d(4, 4, 2, groups=2)],
}


def around(layer: nn.Module) -> tuple[nn.Sequential, Tensor]:
    """A network with this layer between others, and an input."""
    x = torch.randn(2, layer.in_channels, *[5] * (layer.weight.ndim - 2))  # type: ignore[arg-type, operator, union-attr]
    network = nn.Sequential(nn.ReLU(), layer, nn.ReLU(), nn.Flatten(), nn.LazyLinear(3))
    network(x)
    return network, x


@pytest.mark.parametrize(
    ("target", "layer"), [(t, layer) for t, layers in FLOAT_BETWEEN_CODES.items() for layer in layers], ids=str
)
def test_layers_without_an_integer_kernel_are_refused_before_training(target: str, layer: nn.Module) -> None:
    network, x = around(layer)
    with pytest.raises(
        ValueError, match=rf"target={target} has no integer kernel for layer '1' \(.*add a rule that leaves"
    ):
        qat.prepare(network, "w8a8", x, target=target)
    qat.prepare(network, "w8a8", x)
    in_float = {"preset": "w8a8", "rules": {"1": {"match": "1", "weight": None, "activation": None}}}
    assert qat.prepare(network, in_float, x, target=target).get_submodule("1").weight_quantizer is None


@pytest.mark.parametrize("target", EXTRAS)
def test_layers_without_any_kernel_name_another_target(target: str) -> None:
    for layer in NO_KERNEL[target]:
        for network, x in (around(layer), (around(layer)[0][:2], around(layer)[1])):
            with pytest.raises(ValueError, match=rf"target={target} has no kernel for layer '1' .* target: portable"):
                qat.prepare(network, "w8a8", x, target=target)
            qat.prepare(network, "w8a8", x, target="portable")


@pytest.mark.slow
@pytest.mark.parametrize("target", EXTRAS)
def test_a_transposed_convolution_that_returns_floats_computes_in_them(target: str, tmp_path: Path) -> None:
    pytest.importorskip(EXTRAS[target])
    network = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.ConvTranspose2d(8, 5, 2, 2))
    integer = integer_model(target, lambda: network)  # type: ignore[arg-type]
    path = tmp_path / f"m{SUFFIXES[target]}"
    target_named(target).write(integer, images(1), path)
    check = qat.verify(path, integer, [images(16, seed=2)])
    assert check.passed, check


class Runs:
    """A runtime that is the integer model itself, but for `wrong` samples of every batch."""

    fixed_batch = 1

    def __init__(self, integer: nn.Module, wrong: int = 0) -> None:
        self.integer, self.wrong = integer, wrong

    def outputs(self, inputs: tuple[Any, ...]) -> list[Tensor]:
        output = self.integer(*inputs).detach()
        values, places = output.topk(2)
        rows = (values[:, 0] - values[:, 1]).argsort()[: self.wrong]  # where the second best is nearly the best
        output[rows] = output[rows].scatter(1, places[rows], values[rows].flip(1))
        return [output]


@pytest.mark.parametrize(("share", "passes"), [(0.0, True), (0.1, True), (0.8, False)])
def test_outputs_that_decide_alike_but_lose_what_they_say_do_not_pass(
    share: float, passes: bool, tmp_path: Path
) -> None:
    """As where a layer has lost its weights, and its bias decides."""
    network = build(INTEGER[0])
    with torch.no_grad():
        network.linear.bias[0] = 100.0  # type: ignore[union-attr, index]
    integer = qat.convert(_calibrated(network, "executorch"))
    mean = integer(images(64)).detach().mean(0, keepdim=True)

    class Flat(Runs):
        def outputs(self, inputs: tuple[Any, ...]) -> list[Tensor]:
            return [torch.lerp(self.integer(*inputs).detach(), mean, share)]

    (tmp_path / "m.pte").write_bytes(b"right")
    device = Device("a runtime", "torch", lambda _: Flat(integer), lambda *_: Written(b"right", {}, 8))
    check = device.verify(tmp_path / "m.pte", integer, [images(64)])
    assert check.top1_agreement == 1.0
    assert check.passed is passes, check


@pytest.mark.parametrize(("wrong", "content", "layers", "passes"), [
    (0, b"right", 3, True),
    (1, b"right", 3, True),
    (3, b"right", 3, False),
    (0, b"other", 3, False),
    (0, b"right", 2, False),
])  # fmt: skip
def test_decisions_content_and_integer_layers_are_compared(
    wrong: int, content: bytes, layers: int, passes: bool, tmp_path: Path
) -> None:
    network = build(INTEGER[0])
    with torch.no_grad():  # so that decisions hang on what the samples say
        network.linear.bias -= network(images(100, 2)).mean(0)  # type: ignore[union-attr, operator]
    integer = qat.convert(_calibrated(network, "executorch"))
    (tmp_path / "m.pte").write_bytes(b"right")
    device = Device(
        "a runtime", "torch", lambda _: Runs(integer, wrong), lambda *_: Written(content, {"conv": layers}, layers)
    )
    check = device.verify(tmp_path / "m.pte", integer, [images(100, 2), images(100, 3)])
    assert check.runtime == f"a runtime {metadata.version('torch')}"
    assert check.operators == {"conv": layers}
    assert check.passed is passes, check
    assert check.top1_agreement == pytest.approx(1 - 2 * wrong / 200)
    assert check.samples == 200


# With them ------------------------------------------------------------------------------------------------------------


class Gates(nn.Module):
    """Look-ups between convolutions, and times another tensor, as in MobileNetV3 and EfficientNet."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.squeeze, self.excite = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 4, 1), nn.Conv2d(4, 8, 1)
        self.conv, self.head = nn.Conv2d(8, 8, 3), nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.silu(self.stem(x))
        x = x * torch.sigmoid(self.excite(F.relu(self.squeeze(F.adaptive_avg_pool2d(x, 1)))))
        return self.head(F.hardswish(self.conv(x)).mean((2, 3)))


class Pixels(nn.Module):
    """Returns a picture and a number: its last layers are a convolution, which computes in float, and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.pixels, self.head = nn.Conv2d(3, 8, 3, 2, 1), nn.Conv2d(8, 3, 3, padding=1), nn.Linear(8, 10)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = F.relu(self.stem(x))
        return self.head(x.mean((2, 3))), self.pixels(F.interpolate(x, scale_factor=2))


@pytest.mark.slow
@pytest.mark.parametrize("policy", ["w8a8", "w4a4"])
@pytest.mark.parametrize("network", [*INTEGER[:3], Gates, Pixels])
@pytest.mark.parametrize("target", EXTRAS)
def test_every_layer_is_integer_and_decisions_agree(
    target: str, network: type[nn.Module], policy: str, tmp_path: Path
) -> None:
    pytest.importorskip(EXTRAS[target])
    integer = integer_model(target, network, policy)
    path = tmp_path / f"m{SUFFIXES[target]}"
    target_named(target).write(integer, images(1), path)
    check = qat.verify(path, integer, [images(64, seed=2), images(5, seed=3)])
    assert check.passed, check
    assert check.top1_agreement >= 0.99
    outputs = target_named(target).network(path)(images(8, seed=2))
    for output, expected in zip(tree_leaves(outputs), tree_leaves(integer(images(8, seed=2))), strict=True):
        assert float((output - expected).abs().max()) <= 0.1 * float(expected.detach().abs().max())


@pytest.mark.slow
def test_a_program_that_the_runtime_loads_but_cannot_run_is_not_written(tmp_path: Path) -> None:
    pytest.importorskip(EXTRAS["executorch"])
    network, x = around(nn.Conv3d(2, 4, 3))
    in_float = {"preset": "w8a8", "rules": {"1": {"match": "1", "weight": None, "activation": None}}}
    prepared = qat.prepare(network, in_float, x, target="executorch")
    qat.calibrate(prepared, [x])
    with pytest.raises(
        ValueError, match=r"runtime cannot run IntegerSequential, because it has no kernel for one of .*conv"
    ):
        export_executorch(qat.convert(prepared), x, tmp_path / "m.pte")
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.parametrize("target", EXTRAS)
def test_what_is_no_file_or_of_another_model_does_not_pass(target: str, tmp_path: Path) -> None:
    pytest.importorskip(EXTRAS[target])
    path = tmp_path / f"m{SUFFIXES[target]}"
    path.write_bytes(b"nothing")
    with pytest.raises(DamagedFileError, match="is refused by"):
        qat.verify(path, integer_model(target), [images(2)])
    target_named(target).write(integer_model(target), images(1), path)
    other = qat.convert(_calibrated(build(INTEGER[0], seed=1), target))
    assert not qat.verify(path, other, [images(64, seed=2)]).passed


def _calibrated(network: nn.Module, target: str) -> nn.Module:
    prepared = qat.prepare(network, "w8a8", images(2), target=target)
    qat.calibrate(prepared, [images(16)])
    return prepared
