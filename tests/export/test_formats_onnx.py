"""Weights in FP8, MX and NVFP4 in ONNX Runtime: the constants of the file, and what the runtime makes of them."""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto
from torch import nn

import qat
from tests.oracles import floating_point as oracle

WEIGHTS = ("fp8", "mxfp8", "mxfp6", "mxfp4", "mxint8", "nvfp4")


class Sizes(nn.Module):
    """Blocks that are whole, shorter at the end, and narrower than a block; of linear layers and convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.deep = nn.Conv2d(3, 40, 3), nn.BatchNorm2d(40), nn.Conv2d(40, 16, 2)
        self.wide, self.head = nn.Linear(64, 33), nn.Linear(33, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.deep(torch.relu(self.norm(self.conv(x)))).flatten(1)
        return self.head(torch.relu(self.wide(x)))


@pytest.fixture(scope="module")
def network() -> nn.Module:
    torch.manual_seed(0)
    return Sizes().eval()


def converted(network: nn.Module, policy: str | dict) -> tuple[nn.Module, nn.Module]:
    prepared = qat.prepare(network, qat.load_policy(policy, first_last_bits=None), torch.randn(2, 3, 5, 5))
    qat.calibrate(prepared, [torch.randn(8, 3, 5, 5)])
    return prepared, qat.convert(prepared)


@pytest.mark.parametrize("name", WEIGHTS)
def test_the_runtime_computes_what_the_prepared_network_computes(name: str, network: nn.Module, tmp_path: Path) -> None:
    prepared, integer = converted(network, f"{name}_weights")
    x = torch.randn(8, 3, 5, 5)
    assert torch.equal(prepared(x), integer(x))
    path = tmp_path / "model.onnx"
    qat.export_onnx(integer, x[:2], path)
    result = qat.verify(path, integer, [x], prepared)
    assert result.passed, result
    assert len(result.sites) >= 4  # a line for the codes of each weight
    y = onnxruntime.InferenceSession(str(path)).run(None, {"x": x.numpy()})[0]
    np.testing.assert_allclose(y, prepared(x).detach().numpy(), rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_what_torch_onnx_writes_is_the_same(tmp_path: Path) -> None:
    """A transposed convolution, in blocks of its inputs, which are its first axis; operations without a writer around it."""
    network = nn.Sequential(
        nn.ConvTranspose2d(40, 6, 2), nn.GELU(), nn.Conv2d(6, 4, 3, padding_mode="circular", padding=1)
    )
    for name in ("fp8", "mxfp4", "nvfp4"):
        policy = qat.load_policy(f"{name}_weights", first_last_bits=None)
        x = torch.randn(2, 40, 5, 5)
        prepared = qat.prepare(network.eval(), policy, x)
        qat.calibrate(prepared, [x])
        path, integer = tmp_path / f"{name}.onnx", qat.convert(prepared)
        qat.export_onnx(integer, x, path)
        assert qat.verify(path, integer, [x], prepared).passed


def test_fp8_and_the_scales_of_nvfp4_have_their_own_types(network: nn.Module, tmp_path: Path) -> None:
    found = {}
    for name in ("fp8", "nvfp4"):
        _, integer = converted(network, f"{name}_weights")
        qat.export_onnx(integer, torch.randn(2, 3, 5, 5), tmp_path / f"{name}.onnx")
        file = onnx.load(tmp_path / f"{name}.onnx")
        found[name] = {t.name: (onnx.numpy_helper.to_array(t), t.data_type) for t in file.graph.initializer}
    bits, kind = found["fp8"]["wide_weight_codes_stored"]
    assert kind == TensorProto.FLOAT8E4M3FN
    weight = network.wide.weight.detach().numpy()
    scale = np.abs(weight).max(axis=1, keepdims=True) / np.float32(448)
    assert np.array_equal(
        bits.view(np.uint8), (weight / scale).astype(oracle.TYPES["E4M3"]).view(np.uint8) * (bits != 0)
    )
    assert found["nvfp4"]["wide_weight_block_scales_stored"][1] == TensorProto.FLOAT8E4M3FN
    assert any(kind == TensorProto.INT4 for _, kind in found["nvfp4"].values())


def test_an_input_in_such_a_format_is_refused(network: nn.Module, tmp_path: Path) -> None:
    _, integer = converted(network, "nvfp4")
    with pytest.raises(ValueError, match=r"is quantized to nvfp4 in every call.*packed folder \(qat.save_quantized\)"):
        qat.export_onnx(integer, torch.randn(2, 3, 5, 5), tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())


def test_a_tampered_scale_is_seen(network: nn.Module, tmp_path: Path) -> None:
    _, integer = converted(network, "mxfp4_weights")
    path, x = tmp_path / "model.onnx", torch.randn(4, 3, 5, 5)
    qat.export_onnx(integer, x[:2], path)
    file = onnx.load(path)
    exponents = next(t for t in file.graph.initializer if t.data_type == TensorProto.UINT8)
    exponents.raw_data = bytes([exponents.raw_data[0] + 1]) + exponents.raw_data[1:]
    onnx.save(file, path)
    assert not qat.verify(path, integer, [x]).passed


def test_in_the_portable_form_there_are_no_types_of_8_or_4_bit_floats(network: nn.Module, tmp_path: Path) -> None:
    for name in ("fp8", "nvfp4"):
        prepared, integer = converted(network, f"{name}_weights")
        path, x = tmp_path / f"{name}.onnx", torch.randn(4, 3, 5, 5)
        qat.export_onnx(integer, x[:2], path, target="portable")
        kinds = {t.data_type for t in onnx.load(path).graph.initializer}
        assert kinds <= {TensorProto.FLOAT, TensorProto.INT8, TensorProto.INT32, TensorProto.INT64}
        assert qat.verify(path, integer, [x], prepared).passed


class Activations(nn.Module):
    """ReLU, ReLU6 and a concatenation of ReLUs in front of layers: what ONNX Runtime would fuse with QuantizeLinear."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.left, self.right = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 1), nn.Conv2d(8, 4, 1, groups=4)
        self.up, self.head = nn.ConvTranspose2d(8, 6, 2), nn.Linear(6, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = nn.functional.relu6(self.stem(x))
        x = torch.cat([torch.relu(self.left(x)), torch.relu(self.right(x))], 1)
        return self.head(torch.relu(self.up(x)).mean((2, 3)))


@pytest.mark.parametrize("element", ["E4M3", "E5M2"])
def test_static_fp8_inputs_run_in_onnx_runtime(element: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    quantizer = {"_target_": "FP8Static", "element": element}
    activation = {"bits": 8, "quantizer": quantizer, "observer": "MinMax"}
    policy = {"rules": {"all": {"match": "*", "weight": {"bits": 8, "quantizer": "FP8"}, "activation": activation}}}
    batches = [torch.randn(4, 3, 6, 6) for _ in range(2)]
    prepared = qat.prepare(Activations().eval(), policy, batches[0], target="onnxruntime")
    qat.calibrate(prepared, batches)
    integer = qat.convert(prepared)
    path = tmp_path / "model.onnx"
    qat.export_onnx(integer, batches[0], path)
    assert qat.verify(path, integer, batches, prepared).passed
    x = 3 * batches[0]  # beyond what was calibrated
    y = onnxruntime.InferenceSession(str(path)).run(None, {"x": x.numpy()})[0]
    np.testing.assert_allclose(y, prepared.eval()(x).detach().numpy(), rtol=1e-4, atol=1e-5)
    kind = {"E4M3": TensorProto.FLOAT8E4M3FN, "E5M2": TensorProto.FLOAT8E5M2}[element]
    types = {constant.name: constant.data_type for constant in onnx.load(path).graph.initializer}
    made = [n for n in onnx.load(path).graph.node if n.op_type == "QuantizeLinear"]
    assert [types[n.input[2]] for n in made] == [kind] * 4  # the two layers in the middle share theirs
    qat.save_quantized(integer, tmp_path / "packed")
    assert torch.equal(qat.load_quantized(tmp_path / "packed")(x), integer(x))


def test_targets_without_fp8_types_refuse_static_inputs(network: nn.Module) -> None:
    for target in ("portable", "openvino", "tensorrt", "executorch"):
        with pytest.raises(ValueError, match=f"target={target} cannot run rule 'all'"):
            qat.prepare(network, "fp8_static", torch.randn(2, 3, 5, 5), target=target)
