"""The file against the integer model, in ONNX Runtime with all optimisations on and in onnx.reference."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.reference
import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

import qat
from qat.export import OnnxRuntimeNetwork, export_float_onnx, latency, operators
from qat.export.onnx.runtime import operator_shares
from qat.export.onnx.site_session import SiteSession
from qat.integer.modules import IntegerAveragePool, IntegerMean
from tests.networks import INTEGER, Gate, Inception, OptionA, build, images


def written(model, policy, x, tmp_path):
    """The integer model, and its file."""
    prepared = qat.prepare(model, policy, x)
    qat.calibrate(prepared, [x])
    integer = qat.convert(prepared)
    path = tmp_path / "model.onnx"
    qat.export_onnx(integer, x[:2], path)
    return integer, path


def exported(network, policy, tmp_path, seed=0):
    return written(build(network, seed), policy, images(64), tmp_path)


@pytest.mark.parametrize("policy", ["w8a8", "w4a8", "w4a4", "w3a3", "w2a2"])
@pytest.mark.parametrize("network", INTEGER)
def test_not_one_code_differs(network, policy, tmp_path):
    integer, path = exported(network, policy, tmp_path)
    result = qat.verify(path, integer, [images(50, seed) for seed in (2, 3)])
    assert [s for s in result.sites if s.code_mismatches] == []
    assert result.exact
    assert result.top1_agreement == 1.0
    assert result.samples == 100
    assert result.codes_compared == sum(100 * int(np.prod(s.shape)) for s in result.sites)
    assert all(len(set(codes.flatten().tolist())) > 1 for codes in integer.codes(images(50))[1].values())


@pytest.mark.parametrize("policy", ["w8a8", "w2a2"])
def test_every_layer_becomes_an_integer_kernel(policy, tmp_path):
    _, path = exported(OptionA, policy, tmp_path)
    found = operators(path)
    assert found["QLinearConv"] == 3
    assert found["QLinearAdd"] == 2
    assert found["QGemm"] == 1
    assert found["QLinearGlobalAveragePool"] == 1
    assert not set(found) & {"Conv", "Gemm", "Add", "DequantizeLinear", "Cast", "Relu"}
    assert ("Clip" in found) == (policy == "w2a2")


@pytest.mark.parametrize("name", ["resnet18", pytest.param("resnet50", marks=pytest.mark.slow)])
def test_any_torchvision_resnet_with_random_statistics(name, tmp_path):
    model = build(lambda: torchvision.models.get_model(name, num_classes=10))
    x = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    prepared = qat.prepare(model, "w4a4", x)
    qat.calibrate(prepared, [x])
    integer = qat.convert(prepared)
    qat.export_onnx(integer, x, tmp_path / "model.onnx")
    result = qat.verify(tmp_path / "model.onnx", integer, [x])
    convolutions = sum(isinstance(m, nn.Conv2d) for m in model.modules())
    assert result.exact
    assert result.operators["QLinearConv"] == convolutions
    assert "Conv" not in result.operators


def test_operations_left_in_float_are_exported_and_agree(tmp_path):
    integer, path = exported(Gate, "w8a8", tmp_path)
    result = qat.verify(path, integer, [images(50, 2)])
    assert result.code_mismatches <= 0.001 * result.codes_compared  # float sums round differently
    assert result.max_step_difference <= 1
    assert {"Sigmoid", "QLinearConv"} <= set(result.operators)


class Returns(nn.Module):
    """Two heads, returned as `form` says."""

    def __init__(self, form: Callable[[Tensor, Tensor], Any]) -> None:
        super().__init__()
        self.conv, self.a, self.b, self.form = nn.Conv2d(3, 8, 3), nn.Linear(8, 4), nn.Linear(8, 2), form

    def forward(self, x: Tensor) -> Any:
        x = F.relu(self.conv(x)).mean((2, 3))
        return self.form(self.a(x), self.b(x))


@pytest.mark.parametrize(
    ("form", "names"),
    [
        (lambda a, b: (a, b), ["output_0", "output_1"]),
        (lambda a, b: (b, [a, (b, 3)]), ["output_0", "output_1_0", "output_1_1_0"]),
        (lambda a, b: {"logits": a, "loss": None, "boxes": b}, ["output_logits", "output_boxes"]),
    ],
)
def test_all_that_is_returned_is_in_the_file(
    form: Callable[[Tensor, Tensor], Any], names: list[str], tmp_path: Path
) -> None:
    integer, path = exported(lambda: Returns(form), "w8a8", tmp_path)
    assert [output.name for output in onnx.load(path).graph.output] == names
    result = qat.verify(path, integer, [images(50)])
    assert result.exact
    assert [site.name for site in result.sites][-len(names) :] == names


class Between(nn.Module):
    """A convolution and a linear layer that can stay in float between quantized ones."""

    def __init__(self) -> None:
        super().__init__()
        self.before, self.conv, self.bn = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8)
        self.after, self.linear, self.head = nn.Conv2d(8, 8, 3), nn.Linear(8, 8), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn(self.conv(F.relu(self.before(x)))))
        x = self.linear(F.relu(self.after(x)).mean((2, 3)))
        return self.head(F.relu(x))


@pytest.mark.parametrize("layer", ["conv", "linear"])
def test_float_weights_between_quantized_layers_stay_float(layer: str, tmp_path: Path) -> None:
    """Right between DequantizeLinear and QuantizeLinear, ONNX Runtime would round them to 8 bits."""
    rule = {"match": layer, "weight": None, "activation": {"bits": 8}}
    integer, path = exported(Between, qat.load_policy("w8a8", rules={"mine": rule}), tmp_path)
    result = qat.verify(path, integer, [images(50)])
    assert result.code_mismatches <= 1e-4 * result.codes_compared  # float sums round differently
    assert {"conv": "Conv", "linear": "FusedGemm"}[layer] in result.operators, "in float"


def test_the_standards_own_interpreter_agrees_within_one_step(tmp_path):
    integer, path = exported(Inception, "w8a8", tmp_path)
    session = onnx.reference.ReferenceEvaluator(str(path))
    (output,) = session.run(None, {"x": images(4, 5).numpy()})
    with torch.no_grad():
        ours = integer(images(4, 5))
    assert np.abs(output - ours.numpy()).max() < 0.05 * ours.std().item()


@pytest.mark.parametrize(("policy", "kind"), [("w8a8", "INT8"), ("w4a8", "INT4"), ("w3a8", "INT4"), ("w2a8", "INT2")])
def test_weights_take_the_bits_they_need(policy, kind, tmp_path):
    _, path = exported(OptionA, policy, tmp_path)
    model = onnx.load(path)
    types = {t.name: t.data_type for t in model.graph.initializer}
    weight = next(name for name in types if name.startswith("conv3_weight"))
    assert onnx.TensorProto.DataType.Name(types[weight]) == kind
    assert model.opset_import[0].version == (25 if kind == "INT2" else 21)


def test_packed_weights_unpack_to_the_codes(tmp_path):
    for policy in ("w4a8", "w2a8"):
        integer, path = exported(OptionA, policy, tmp_path)
        tensor = next(t for t in onnx.load(path).graph.initializer if t.name.startswith("conv3_weight"))
        unpacked = onnx.numpy_helper.to_array(tensor).astype(np.int8)
        assert np.array_equal(unpacked, integer.conv3.weight.numpy())


def test_verify_sees_a_single_changed_weight(tmp_path):
    integer, path = exported(OptionA, "w8a8", tmp_path)
    model = onnx.load(path)
    tensor = next(t for t in model.graph.initializer if t.name == "conv2_weight")
    codes = onnx.numpy_helper.to_array(tensor).copy()
    codes[0, 0, 1, 1] = codes[0, 0, 1, 1] - 9 if codes[0, 0, 1, 1] > 0 else codes[0, 0, 1, 1] + 9
    tensor.CopyFrom(onnx.numpy_helper.from_array(codes, tensor.name))
    onnx.save(model, path)
    result = qat.verify(path, integer, [images(50, 2)])
    assert result.code_mismatches > 0
    assert not result.exact
    assert next(s.name for s in result.sites if s.code_mismatches) == "conv2"


def test_verify_refuses_another_models_file(tmp_path):
    _, path = exported(OptionA, "w8a8", tmp_path)
    other, _ = exported(Inception, "w8a8", tmp_path / "other")
    with pytest.raises(ValueError, match="written from another model"):
        qat.verify(path, other, [images(2)])
    with pytest.raises(ValueError, match="batches is empty"):
        qat.verify(tmp_path / "other" / "model.onnx", other, [])


def test_any_batch_size_runs(tmp_path):
    integer, path = exported(OptionA, "w4a4", tmp_path)
    network = OnnxRuntimeNetwork(path)
    for size in (1, 7):
        with torch.no_grad():
            assert torch.equal(network(images(size)), integer(images(size)))


def test_only_integer_models_are_exported(tmp_path):
    with pytest.raises(ValueError, match=r"pass the result of qat\.convert"):
        qat.export_onnx(build(OptionA), images(1), tmp_path / "model.onnx")
    assert list(tmp_path.iterdir()) == []


def test_the_float_file_and_its_clock(tmp_path):
    model = build(OptionA)
    export_float_onnx(model, images(1), tmp_path / "float.onnx")
    with torch.no_grad():
        assert torch.allclose(OnnxRuntimeNetwork(tmp_path / "float.onnx")(images(5)), model(images(5)), atol=1e-4)
    measured = latency({"float": tmp_path / "float.onnx"}, images(1), batch_sizes=(1, 2), rounds=2)
    assert set(measured["float"]) == {1, 2}
    assert all(ms > 0 for ms in measured["float"].values())


def test_shares_of_the_time_are_those_of_layers(tmp_path):
    _, path = exported(OptionA, "w4a4", tmp_path)
    shares = operator_shares(path, (images(1),), batch=4, rounds=2, threads=1)
    assert sum(shares.values()) == pytest.approx(1)
    assert list(shares.values()) == sorted(shares.values(), reverse=True)
    counts = operators(path)
    assert len(shares) <= sum(counts.values())
    assert sum(name.endswith("(QLinearConv)") for name in shares) == counts["QLinearConv"]
    assert "conv1 (QLinearConv)" in shares


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"missing\.onnx does not exist"):
        OnnxRuntimeNetwork(tmp_path / "missing.onnx")


def test_reading_sites_leaves_the_file_alone(tmp_path):
    _, path = exported(OptionA, "w8a8", tmp_path)
    before = path.read_bytes()
    SiteSession(path, ["conv1"])
    assert path.read_bytes() == before


def test_batches_may_carry_labels(tmp_path):
    integer, path = exported(OptionA, "w8a8", tmp_path)
    labelled = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(images(6), torch.arange(6)), batch_size=3)
    assert qat.verify(path, integer, labelled).samples == 6
    prepared = qat.prepare(build(OptionA), "w8a8")
    assert qat.calibrate(prepared, labelled) > 0


@pytest.mark.parametrize("policy", ["w8a8", "w4a8", "w2a2"])
def test_layers_of_equal_width_and_names_that_look_like_constants(policy: str, tmp_path: Path) -> None:
    class Twins(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.c0, self.c1, self.c2 = nn.Linear(12, 12), nn.Linear(12, 12), nn.Linear(12, 12)

        def forward(self, c3: Tensor) -> Tensor:
            return self.c2(self.c2(F.relu(self.c1(F.relu(self.c0(c3))))))

    x = torch.randn(32, 12)
    integer, path = written(Twins().eval(), policy, x, tmp_path)
    assert qat.verify(path, integer, [x]).exact


def test_a_network_with_one_number_a_sample_agrees_where_the_signs_do(tmp_path: Path) -> None:
    class Score(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x).flatten()

    x = torch.randn(16, 6)
    integer, path = written(Score(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 1)).eval(), "w8a8", x, tmp_path)
    check = qat.verify(path, integer, [x])
    assert check.exact
    assert check.top1_agreement == 1.0


def test_a_network_that_ends_in_a_convolution_agrees_pixel_by_pixel(tmp_path: Path) -> None:
    x = torch.randn(4, 3, 8, 8)
    integer, path = written(
        nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 5, 1)).eval(), "w4a4", x, tmp_path
    )
    check = qat.verify(path, integer, [x])
    assert check.exact
    assert check.top1_agreement == 1.0
    assert "output (within 1e-05 of the largest)" in [site.name for site in check.sites]


def test_scales_with_which_the_runtime_would_crash_are_refused(tmp_path):
    integer, path = exported(OptionA, "w8a8", tmp_path)
    path.unlink()
    pool = next(m for m in integer.modules() if isinstance(m, IntegerAveragePool | IntegerMean))
    pool.output = dataclasses.replace(pool.output, scale=pool.input.scale / 256 / 64)
    with pytest.raises(ValueError, match=r"are too far apart, .* lower the learning rate"):
        qat.export_onnx(integer, images(2), path)
    assert not path.exists()
