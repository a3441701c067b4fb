"""When a session of ONNX Runtime is told to sum exactly: only where sums could saturate, because it costs time."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from qat.export.onnx import saturation


def model(*codes: int) -> onnx.ModelProto:
    weight = numpy_helper.from_array(np.array(codes, np.int8), "weight")
    return onnx.helper.make_model(onnx.helper.make_graph([], "g", [], [], [weight]))


@pytest.mark.parametrize(
    ("machine", "features", "exact"),
    [
        ("x86_64", "flags : avx2 avx512_vnni", True),
        ("x86_64", "flags : avx2 avx_vnni", True),
        ("AMD64", "flags : avx2 avx512f", False),
        ("aarch64", "", True),
    ],
)
def test_processors_without_vnni_need_it_for_wide_weights(machine, features, exact, monkeypatch) -> None:
    monkeypatch.setattr(saturation.platform, "machine", lambda: machine)
    monkeypatch.setattr(Path, "read_text", lambda _path: features)
    saturation.adds_in_32_bits.cache_clear()
    assert saturation.adds_in_32_bits() is exact
    assert saturation.needs_exact_sums(model(1, -65)) is not exact
    assert saturation.needs_exact_sums(model(1, -128)) is not exact
    assert not saturation.needs_exact_sums(model(64, -64))  # 2 * 255 * 64 fits 16 bits
    saturation.adds_in_32_bits.cache_clear()
