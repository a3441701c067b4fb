"""Weights in few bits, arithmetic in float: what the file stores and what it computes."""

import functools

import numpy as np
import onnx
import pytest
import torch

import qat
from qat.export import OnnxRuntimeNetwork
from tests.networks import Inception, Inverted, OptionA, Rows, build, images

GROUPS = {"granularity": "per_group", "group_size": 9}
POLICIES = {
    "w8": "w8",
    "w4": {"preset": "w4", "first_last_bits": None},
    "w2": {"preset": "w2", "first_last_bits": None},
    "per group": {"preset": "w4", "first_last_bits": None, "weight": GROUPS, "rules": {
        "last": {"match": "last", "weight": {"bits": 4, "group_size": 8}, "activation": None}}},
    "affine": {"preset": "w4", "first_last_bits": None, "weight": {"symmetric": False}},
    "per tensor": {"preset": "w4", "first_last_bits": None, "weight": {"granularity": "per_tensor"}},
}  # fmt: skip


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """(prepared, integer, path) of a network and a policy, made once: nobody changes them."""

    @functools.cache
    def of(network, policy):
        prepared, path = qat.prepare(build(network), qat.load_policy(POLICIES[policy])), tmp_path_factory.mktemp("onnx")
        qat.calibrate(prepared, [images(16)])
        integer = qat.convert(prepared)
        qat.export_onnx(integer, images(2), path / "model.onnx")
        return prepared.eval(), integer, path / "model.onnx"

    return of


@pytest.mark.parametrize("policy", POLICIES)
def test_the_file_computes_what_was_trained(policy, exported):
    prepared, integer, path = exported(OptionA, policy)
    x = images(16, 3)
    expected = prepared(x).detach()
    torch.testing.assert_close(integer(x).detach(), expected, rtol=0, atol=0)
    torch.testing.assert_close(OnnxRuntimeNetwork(path)(x), expected, rtol=0, atol=1e-5 * expected.abs().max().item())
    result = qat.verify(path, integer, [x])
    assert result.exact
    names = [site.name for site in result.sites]
    assert names == [
        "conv1.weight",
        "conv2.weight",
        "conv3.weight",
        "linear.weight",
        "output (within 1e-05 of the largest)",
    ]
    assert result.codes_compared == sum(p.numel() for p in prepared.parameters() if p.dim() >= 2) + expected.numel()


@pytest.mark.parametrize("network", [Inverted, Inception, Rows])
def test_every_network_that_has_an_integer_form_has_a_float_one(network, exported):
    _, integer, path = exported(network, "w4")
    assert qat.verify(path, integer, [images(8, 4)]).exact


@pytest.mark.parametrize(
    ("policy", "kind"), [("w8", "INT8"), ("w4", "INT4"), ("w2", "INT2"), ("affine", "UINT4"), ("per group", "INT4")]
)
def test_codes_take_the_bits_they_need_and_no_float_weight_is_stored(policy, kind, exported):
    prepared, _, path = exported(OptionA, policy)
    tensors = {t.name: t for t in onnx.load(path).graph.initializer}
    weights = [t for name, t in tensors.items() if "_weight_codes" in name]
    assert [onnx.TensorProto.DataType.Name(t.data_type) for t in weights] == [kind] * 4
    floats = sum(int(np.prod(t.dims)) for t in tensors.values() if t.data_type == onnx.TensorProto.FLOAT)
    assert floats < sum(p.numel() for p in prepared.parameters() if p.dim() >= 2) / 5  # scales, biases, BatchNorm
    codes = onnx.numpy_helper.to_array(weights[1]).astype(np.float32).reshape(16, 8, 3, 3)
    quantizer = prepared.conv2.weight_quantizer
    assert np.array_equal(codes, quantizer.quantize(prepared.conv2.weight).detach().numpy())


def test_the_runtime_widens_weights_once_and_multiplies_in_float(exported):
    _, integer, path = exported(OptionA, "w4")
    found = qat.verify(path, integer, [images(2)]).operators
    assert not {"Cast", "Mul", "DequantizeLinear", "MatMulNBits", "BatchNormalization"} & set(found)


def test_verify_sees_a_changed_weight_and_a_wrong_output(exported, tmp_path):
    _, integer, path = exported(OptionA, "w8")
    model = onnx.load(path)
    tensor = next(t for t in model.graph.initializer if t.name.startswith("conv2_weight_codes"))
    codes = onnx.numpy_helper.to_array(tensor).copy()
    changed = np.count_nonzero(codes)
    codes *= -1
    tensor.CopyFrom(onnx.numpy_helper.from_array(codes, tensor.name))
    onnx.save(model, tmp_path / "changed.onnx")
    sites = {site.name: site for site in qat.verify(tmp_path / "changed.onnx", integer, [images(16)]).sites}
    assert sites["conv2.weight"].code_mismatches == changed > 0
    assert sites["conv2.weight"].max_step_difference == 2 * np.abs(codes.astype(int)).max()
    assert sites["output (within 1e-05 of the largest)"].code_mismatches > 0
