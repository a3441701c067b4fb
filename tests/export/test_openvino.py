"""Files in OpenVINO: executed in integers, codes of every site at most one step from the integer model's."""

from pathlib import Path

import onnx
import pytest
import torch

import qat
from qat.export.onnx.saturation import adds_in_32_bits
from qat.export.targets import runtime_of, target_named
from tests.networks import INTEGER, build, images

has_openvino = pytest.importorskip("openvino", reason="OpenVINO is not installed: pip install openvino") is not None


@pytest.mark.parametrize(("network", "policy"), [(INTEGER[0], "w8a8"), (INTEGER[1], "w4a4"), (INTEGER[2], "w8a8")])
def test_layers_run_in_integers_and_codes_within_the_tolerance(network: type, policy: str, tmp_path: Path) -> None:
    exact = {"preset": policy, "reduce_range": not adds_in_32_bits()}
    prepared = qat.prepare(build(network), exact, images(2))
    qat.calibrate(prepared, [images(32)])
    integer = qat.convert(prepared)
    path = tmp_path / "m.onnx"
    target_named("openvino").write(integer, images(2), path)
    check = target_named("openvino").verify(path, integer, [images(32, seed=2)], prepared)
    assert check.passed, check
    assert check.max_step_difference <= 1
    assert "in OpenVINO" in check.sentences[0]
    layers = {k: n for k, n in check.operators.items() if k.startswith(("Convolution", "FullyConnected", "MatMul"))}
    in_file = sum(n.op_type in ("Conv", "Gemm", "MatMul") for n in onnx.load(path).graph.node)
    assert sum(layers.values()) == in_file
    assert all(kind.endswith(("(u8)", "(i8)")) for kind in layers), layers
    proof = qat.verify(path)
    assert proof.passed
    assert "OpenVINO" in str(proof)
    ours = runtime_of("openvino").open(path)(images(4))
    assert torch.allclose(ours, integer(images(4)), atol=0.05 * float(ours.abs().max()))


@pytest.mark.skipif(adds_in_32_bits(), reason="this processor has VNNI")
def test_sums_that_saturate_are_named_with_the_policy_whose_sums_do_not(tmp_path: Path) -> None:
    prepared = qat.prepare(build(INTEGER[0]), "w8a8", images(2))
    qat.calibrate(prepared, [images(32)])
    integer = qat.convert(prepared)
    target_named("openvino").write(integer, images(2), tmp_path / "m.onnx")
    check = qat.verify(tmp_path / "m.onnx", integer, [images(32, seed=2)], runtime="openvino")
    assert "has no VNNI, and such sums saturate: write policy.reduce_range=true" in check.failure("m.onnx")


def test_a_changed_weight_is_seen(tmp_path: Path) -> None:
    prepared = qat.prepare(build(INTEGER[0]), "w8a8", images(2))
    qat.calibrate(prepared, [images(16)])
    integer = qat.convert(prepared)
    qat.export_onnx(integer, images(2), tmp_path / "m.onnx", target="portable")
    file = onnx.load(tmp_path / "m.onnx")
    weight = next(t for t in file.graph.initializer if t.name.endswith("conv1_weight"))
    codes = onnx.numpy_helper.to_array(weight).copy()
    codes.reshape(-1)[0] ^= 64
    weight.CopyFrom(onnx.numpy_helper.from_array(codes, weight.name))
    onnx.save(file, tmp_path / "m.onnx")
    check = qat.verify(tmp_path / "m.onnx", integer, [images(16, seed=2)], runtime="openvino")
    assert check.stored
    assert any(site.code_mismatches for site in check.sites)
