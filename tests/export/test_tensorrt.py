"""Files for TensorRT: the rules of its documentation hold, and ONNX Runtime computes what the integer model does."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F
from onnx import TensorProto, numpy_helper
from torch import Tensor, nn

import qat
from tests.export.test_portable import Moving
from tests.networks import INTEGER, build, images

NETWORKS: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "residual": (INTEGER[0], "w8a8"),
    "4 bits": (INTEGER[1], "w4a4"),
    "moves": (lambda: Moving(lambda x: F.adaptive_max_pool2d(F.pad(x, (1, 0, 0, 1)), 5), 200), "w8a8"),
    "look-up": (lambda: Moving(lambda x: F.gelu(x).sum(1), 256), "w4a8"),
}


def written(name: str, path: Path) -> tuple[nn.Module, onnx.ModelProto]:
    network, policy = NETWORKS[name]
    prepared = qat.prepare(build(network), policy, images(2), target="tensorrt")
    qat.calibrate(prepared, [images(16)])
    integer = qat.convert(prepared)
    qat.export_onnx(integer, images(2), path, target="tensorrt")
    return integer, onnx.load(path)


@pytest.mark.parametrize("name", NETWORKS)
def test_the_rules_hold_and_codes_differ_by_ties_alone(name: str, tmp_path: Path) -> None:
    integer, file = written(name, tmp_path / "m.onnx")
    check = qat.verify(tmp_path / "m.onnx", integer, [images(16, seed=2)])
    assert check.passed, check
    assert check.float_ties <= 1e-3 * check.codes_compared
    constants = {t.name: t for t in file.graph.initializer}
    assert not {t.data_type for t in constants.values()} & {TensorProto.UINT8, TensorProto.INT4}
    pairs = [n for n in file.graph.node if n.op_type.endswith("tizeLinear")]
    for node in pairs:
        zero_point = numpy_helper.to_array(constants[node.input[2]])
        assert zero_point.dtype == np.int8
        assert not zero_point.any()
    codes = {n.output[0] for n in pairs if n.op_type == "QuantizeLinear"}
    assert {n.op_type for n in file.graph.node for i in n.input if i in codes} == {"DequantizeLinear"}
    floats = {n.output[0] for n in pairs if n.op_type == "DequantizeLinear"}
    adds = [n for n in file.graph.node if n.op_type == "Add" and not n.output[0].endswith("number")]
    assert all(set(n.input) <= floats for n in adds)
    assert bool(adds) == (name in ("residual", "4 bits"))


def test_relu_stands_before_quantize(tmp_path: Path) -> None:
    _, file = written("residual", tmp_path / "m.onnx")
    quantized = {n.input[0] for n in file.graph.node if n.op_type == "QuantizeLinear"}
    rectified = {n.output[0] for n in file.graph.node if n.op_type == "Relu"}
    assert rectified
    assert rectified <= quantized
    assert not any(n.op_type == "Clip" for n in file.graph.node)


def test_a_network_that_was_prepared_for_others_is_refused(tmp_path: Path) -> None:
    prepared = qat.prepare(build(INTEGER[0]), "w8a8", images(2))
    qat.calibrate(prepared, [images(8)])
    with pytest.raises(ValueError, match=r"do not fit int8: prepare .* target=\"tensorrt\""):
        qat.export_onnx(qat.convert(prepared), images(2), tmp_path / "m.onnx", target="tensorrt")
    assert not list(tmp_path.iterdir())


def test_verify_sees_a_changed_code(tmp_path: Path) -> None:
    integer, file = written("residual", tmp_path / "m.onnx")
    weight = next(t for t in file.graph.initializer if t.name.endswith("conv1_weight"))
    codes = numpy_helper.to_array(weight).copy()
    codes.reshape(-1)[0] ^= 64
    weight.CopyFrom(numpy_helper.from_array(codes, weight.name))
    onnx.save(file, tmp_path / "m.onnx")
    check = qat.verify(tmp_path / "m.onnx", integer, [images(16, seed=2)])
    assert check.stored
    assert any(site.code_mismatches for site in check.sites)


def test_what_is_computed_from_constants_stays_as_it_is(tmp_path: Path) -> None:
    class Normalized(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.std = nn.Conv2d(3, 4, 3), nn.Buffer(torch.tensor([0.1, 1e-9, 0.3]))

        def forward(self, x: Tensor) -> Tensor:
            return self.conv(x / self.std.clamp(1e-3, 1)[:, None, None])

    prepared = qat.prepare(Normalized().eval(), "w8a8", images(2), target="tensorrt")
    qat.calibrate(prepared, [images(4)])
    integer = qat.convert(prepared)
    qat.export_onnx(integer, images(2), tmp_path / "m.onnx", target="tensorrt")
    assert qat.verify(tmp_path / "m.onnx", integer, [images(4)], prepared).passed
