"""Dynamic inputs: the sites of prepare, the integer model's result, and ONNX Runtime's."""

from collections import Counter

import numpy as np
import onnx
import pytest
import torch
from torch import nn

import qat
from qat.integer import arithmetic
from qat.integer.layers import DynamicLayer
from qat.integer.modules import DynamicQuantize
from qat.ptq import AdaRound, Calibrate, apply_passes
from qat.transform import quantizers
from tests.networks import Gate, Inception, Inverted, OptionA, Rows, build, images


def converted(network, policy):
    prepared = qat.prepare(build(network), policy, images(2))
    qat.calibrate(prepared, [images(16)])
    return prepared.eval(), qat.convert(prepared)


def exported(network, policy, tmp_path):
    prepared, integer = converted(network, policy)
    qat.export_onnx(integer, images(2), tmp_path / "model.onnx")
    return prepared, integer, tmp_path / "model.onnx"


@pytest.mark.parametrize(
    ("network", "policy"),
    [
        (OptionA, "w8_dynamic"),
        (Inverted, "w8_dynamic"),
        (Inverted, "w4_dynamic"),
        (Inception, "w4_dynamic"),
        (Rows, "w4_dynamic"),
        (Gate, "w8_dynamic"),
    ],
)
def test_no_code_differs_and_outputs_agree_in_float32(network, policy, tmp_path):
    prepared, integer, path = exported(network, policy, tmp_path)
    batches = [images(8, 2), 3 * images(5, 3)]
    result = qat.verify(path, integer, batches)
    assert result.exact
    sites = [site for site in result.sites if not site.name.startswith("output")]
    assert len(sites) == sum(isinstance(m, DynamicQuantize) for m in integer.modules()) > 1
    for x in batches:
        expected = prepared(x).detach()
        torch.testing.assert_close(integer(x).detach(), expected, rtol=0, atol=0.01 * expected.abs().max().item())


def test_only_inputs_of_layers_are_quantized_and_the_residual_is_float(tmp_path):
    prepared, _, path = exported(OptionA, "w8_dynamic", tmp_path)
    found = Counter(node.op_type for node in onnx.load(path).graph.node)
    assert (found["DynamicQuantizeLinear"], found["ConvInteger"], found["MatMulInteger"]) == (4, 3, 1)
    assert not {"QuantizeLinear", "DequantizeLinear", "Conv", "MatMul", "BatchNormalization"} & set(found)
    assert {"x_input_dynamic", "conv1_dynamic", "add_dynamic"} < set(prepared.sites)
    assert "add" in qat.inspect(prepared).float_edges


def test_a_tensor_with_two_readers_has_one_site():
    integer = converted(Inception, "w8_dynamic")[1]
    sites = [m for m in integer.children() if isinstance(m, DynamicQuantize)]
    layers = [m for m in integer.children() if isinstance(m, DynamicLayer)]
    assert len(sites) < len(layers)


def test_a_group_of_weights_on_a_dynamic_input_multiplies_in_float(tmp_path):
    policy = qat.load_policy(
        {"preset": "w4_dynamic", "first_last_bits": None, "rules": {"last": {
            "match": "last", "weight": {"bits": 4, "granularity": "per_group", "group_size": 8},
            "activation": {"bits": 8, "symmetric": False, "quantizer": "Dynamic"}}}}
    )  # fmt: skip
    prepared, integer, path = exported(OptionA, policy, tmp_path)
    x = images(8, 2)
    torch.testing.assert_close(integer(x), prepared(x).detach(), rtol=0, atol=1e-2 * prepared(x).abs().max().item())
    assert qat.verify(path, integer, [x]).exact


def test_static_ends_beside_dynamic_layers(tmp_path):
    static = {"weight": {"bits": 8}, "activation": {"bits": 8}}
    policy = qat.load_policy(
        {"preset": "w8_dynamic", "rules": {"first": {"match": "first", **static}, "last": {"match": "last", **static}}}
    )
    prepared, integer, path = exported(OptionA, policy, tmp_path)
    assert {"x_input", "conv1_dynamic"} < set(prepared.sites)
    assert qat.verify(path, integer, [images(8, 2)]).exact


def test_post_training_quantization_keeps_inputs_dynamic():
    network, batches = build(OptionA), [images(16)]
    found = apply_passes([Calibrate("MinMax"), AdaRound(2)], network, "w8_dynamic", batches)
    activations = [q for name, q in quantizers(found).items() if name.startswith("sites.")]
    assert activations
    assert all(type(q).__name__ == "Dynamic" for q in activations)
    assert (found(images(16, 5)) - network(images(16, 5))).abs().max() > 0


def test_a_model_without_a_graph_owns_dynamic_inputs():
    class Branching(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(3, 2)

        def forward(self, x):
            return self.linear(x) if x.sum() > 0 else self.linear(-x)

    prepared = qat.prepare(Branching(), "w8_dynamic")
    x = torch.rand(4, 3)
    assert qat.calibrate(prepared, [x]) == 1
    assert type(prepared.linear.input_quantizer).__name__ == "Dynamic"
    torch.testing.assert_close(qat.convert(prepared)(x), prepared(x).detach())


def test_ranges_per_token_give_the_same_codes_and_depend_on_no_other_token(tmp_path):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(12, 24), nn.GELU(), nn.Linear(24, 6)).eval()
    x = torch.randn(4, 7, 12) * torch.rand(4, 7, 1).pow(4)
    x[0, 0] = 0.0
    prepared = qat.prepare(model, "w8_dynamic_per_token", x)
    qat.calibrate(prepared, [x])
    with torch.no_grad():
        torch.testing.assert_close(prepared(x)[1:2, 2:3], prepared(x[1:2, 2:3]), rtol=1e-5, atol=1e-6)
        assert (prepared(x) - model(x)).square().mean() < 1e-4 * model(x).square().mean()
    codes, scale, _ = arithmetic.quantize_tokens(x)
    expected = np.abs(x.numpy()).max(axis=-1, keepdims=True) / np.float32(127)
    np.testing.assert_array_equal(scale.numpy(), np.maximum(expected, np.finfo(np.float32).tiny))
    np.testing.assert_array_equal(codes.numpy(), np.rint(x.numpy() / scale.numpy()) + 128)
    integer = qat.convert(prepared)
    qat.export_onnx(integer, x, tmp_path / "m.onnx")
    result = qat.verify(tmp_path / "m.onnx", integer, [x, x[:2]])
    assert result.exact
    assert result.operators["MatMulInteger"] == 2
