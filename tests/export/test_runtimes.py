"""A runtime that is not there, or does not exist, is named before anything runs."""

import sys
from pathlib import Path

import pytest
from torch import nn

import qat
from qat.export.onnx.engine import ONNX_RUNTIME, Engine
from tests.networks import INTEGER, build, images


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[nn.Module, Path]:
    prepared = qat.prepare(build(INTEGER[0]), "w8a8", images(2))
    qat.calibrate(prepared, [images(8)])
    integer, path = qat.convert(prepared), tmp_path_factory.mktemp("runtimes") / "m.onnx"
    qat.export_onnx(integer, images(2), path)
    return integer, path


def test_a_missing_package_is_named(written: tuple[nn.Module, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    integer, path = written
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(ImportError, match=r"OpenVINO is not installed: pip install 'qat-lightning\[openvino\]'"):
        qat.verify(path, integer, [images(4)], runtime="openvino")


def test_an_unknown_runtime_is_named(written: tuple[nn.Module, Path]) -> None:
    integer, path = written
    with pytest.raises(ValueError, match="did you mean onnxruntime"):
        qat.verify(path, integer, [images(4)], runtime="onnx-runtime")
    with pytest.raises(ValueError, match="runtime=7 does not exist: write one of"):
        qat.verify(path, integer, [images(4)], runtime=7)  # type: ignore[call-overload]


@pytest.mark.parametrize("runtime", ["torch", "executorch", "litert"])
def test_a_runtime_for_other_files_is_named(runtime: str, written: tuple[nn.Module, Path]) -> None:
    integer, path = written
    with pytest.raises(
        ValueError, match=rf"runtime='{runtime}' does not run .onnx files, .*: write one of onnxruntime, openv"
    ):
        qat.verify(path, integer, [images(4)], runtime=runtime)


def test_the_runtime_is_part_of_the_result(written: tuple[nn.Module, Path]) -> None:
    integer, path = written
    check = qat.verify(path, integer, [images(8)], runtime="onnxruntime")
    assert check.runtime.startswith("ONNX Runtime 1.")
    assert check.exact_runtime


@pytest.mark.parametrize(("requantized", "codes", "share"), [
    (False, 10**6, 0.001),
    (True, 10**6, 0.05),
    (False, 200, 1 / 200),
    (True, 0, None),
])  # fmt: skip
def test_a_tolerance_is_at_least_one_code(requantized: bool, codes: int, share: float | None) -> None:
    engine = Engine("a runtime", "onnx", ONNX_RUNTIME.open, ONNX_RUNTIME.operators, 0.001, 0.05)
    assert engine.ties_allowed(requantized, codes) == share
    assert ONNX_RUNTIME.ties_allowed(requantized, codes) is None
