"""Plain QDQ files: the same codes in ONNX Runtime, in a form that asks nothing special of whoever reads it."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F
from onnx import TensorProto
from torch import Tensor, nn

import qat
from tests.networks import INTEGER, build, images


class Moving(nn.Module):
    """A convolution, `operation` on its codes, and a linear layer of `features`."""

    def __init__(self, operation: Callable[[Tensor], Tensor], features: int) -> None:
        super().__init__()
        self.conv, self.fc, self.operation = nn.Conv2d(3, 8, 3, padding=1), nn.Linear(features, 5), operation

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.operation(F.relu(self.conv(x))).flatten(1))


NETWORKS: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "residual, 4 bits": (INTEGER[0], "w4a4"),
    "concatenation": (INTEGER[2], "w8a8"),
    "weights of 2 bits": (INTEGER[1], "w2a2"),
    "weights alone": (INTEGER[0], "w4"),
    "moves": (lambda: Moving(lambda x: F.max_pool2d(F.pad(x, (1, 0, 0, 1)), 2)[:, ::2].mT, 256), "w8a8"),
    "moves by torch.onnx": (lambda: Moving(lambda x: F.interpolate(x.chunk(2, 1)[1], scale_factor=2), 4096), "w8a8"),
    "look-up": (lambda: Moving(lambda x: F.gelu(x)[:, ::2], 1024), "w4a8"),
    "group norm": (lambda: Moving(nn.GroupNorm(2, 8), 2048), "w8a8"),
}


def written(
    name: str, path: Path, dynamic: dict[str, tuple[int, ...]] | None = None
) -> tuple[nn.Module, onnx.ModelProto]:
    network, policy = NETWORKS[name]
    prepared = qat.prepare(build(network), policy, images(2))
    qat.calibrate(prepared, [images(16)])
    integer = qat.convert(prepared)
    qat.export_onnx(integer, images(4), path, dynamic, target="portable")
    return integer, onnx.load(path)


SLOW = ("weights alone", "group norm", "weights of 2 bits")


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow) if n in SLOW else n for n in NETWORKS])
def test_not_one_code_differs_and_nothing_special_is_in_the_file(name: str, tmp_path: Path) -> None:
    integer, file = written(name, tmp_path / "m.onnx")
    check = qat.verify(tmp_path / "m.onnx", integer, [images(16, seed=2)])
    assert check.passed, check
    assert file.opset_import[0].version == {"moves by torch.onnx": 18, "group norm": 21}.get(name, 13)
    types = {t.data_type for t in file.graph.initializer}
    assert not types & {getattr(TensorProto, t) for t in ("INT4", "UINT4", "INT2", "UINT2")}
    codes = {n.output[0] for n in file.graph.node if n.op_type == "QuantizeLinear"}
    readers = {n.op_type for n in file.graph.node for name in n.input if name in codes}
    assert readers <= {"DequantizeLinear", "Cast"}  # the index of a look-up is cast
    assert all(len(n.input) == 3 for n in file.graph.node if n.op_type.endswith("tizeLinear"))


def test_a_static_batch(tmp_path: Path) -> None:
    integer, file = written("residual, 4 bits", tmp_path / "m.onnx", dynamic={})
    assert [d.dim_value for d in file.graph.input[0].type.tensor_type.shape.dim] == [4, 3, 16, 16]
    assert next(d.dim_value for d in file.graph.output[0].type.tensor_type.shape.dim) == 4
    assert qat.verify(tmp_path / "m.onnx", integer, [images(4, seed=2)]).passed


def test_verify_sees_a_changed_grid_behind_a_move(tmp_path: Path) -> None:
    integer, file = written("moves", tmp_path / "m.onnx")
    pool = next(n for n in file.graph.node if n.op_type == "MaxPool")
    behind = next(n for n in file.graph.node if n.input[0] == pool.output[0])
    scale = next(t for t in file.graph.initializer if t.name == behind.input[1])
    other = onnx.numpy_helper.from_array(np.asarray(onnx.numpy_helper.to_array(scale) * np.float32(1.5)), "other")
    file.graph.initializer.append(other)
    behind.input[1] = "other"
    onnx.save(file, tmp_path / "m.onnx")
    check = qat.verify(tmp_path / "m.onnx", integer, [images(16, seed=2)])
    assert check.code_mismatches
    assert check.stored


def test_an_unknown_target_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="did you mean portable"):
        qat.export_onnx(torch.nn.Linear(1, 1), torch.zeros(1, 1), tmp_path / "m.onnx", target="portabel")


def test_outputs_in_integers_too(tmp_path: Path) -> None:
    policy = qat.load_policy({"preset": "w8a8", "quantize_outputs": True})
    prepared = qat.prepare(build(INTEGER[0]), policy, images(2))
    qat.calibrate(prepared, [images(16)])
    integer = qat.convert(prepared)
    assert len(integer(images(16)).unique()) <= 256
    qat.export_onnx(integer, images(4), tmp_path / "m.onnx", target="portable")
    file = onnx.load(tmp_path / "m.onnx")
    producers = {name: node for node in file.graph.node for name in node.output}
    last = producers[file.graph.output[0].name]
    assert (last.op_type, producers[last.input[0]].op_type) == ("DequantizeLinear", "QuantizeLinear")
    check = qat.verify(tmp_path / "m.onnx", integer, [images(16, seed=2)])
    assert check.passed, check
    assert check.operators["QGemm"] == 1
    assert policy == qat.load_policy(policy.to_dict())
    with pytest.raises(ValueError, match="quantize_outputs='no' is neither true nor false"):
        qat.load_policy({"preset": "w8a8", "quantize_outputs": "no"})
