"""Files in WebAssembly, which has no fused multiply-adds: not one code differs there either. Needs node and

npm ci --prefix tests/export/wasm
"""

from __future__ import annotations

import json
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
import pytest
import torch
import torchvision
from torch import Tensor, nn

import qat
from qat.export.onnx.engine import Engine
from qat.export.onnx.verify import verify_onnx
from qat.integer import encodings
from qat.integer.modules import IntegerAdd
from qat.spec import QParams
from tests.integer.test_short_ratios import add, adversarial_scales
from tests.networks import OptionA, build

FOLDER = Path(__file__).parent / "wasm"
NODE = shutil.which("node")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(NODE is None, reason="node is not installed"),
    pytest.mark.skipif(not (FOLDER / "node_modules").is_dir(), reason="run npm ci --prefix tests/export/wasm"),
]


class Input(NamedTuple):
    name: str


class WasmSession:
    """A file in onnxruntime-web; each run is a process of node."""

    def __init__(self, content: bytes) -> None:
        self.content = content
        graph = onnx.load_model_from_string(content).graph
        self.inputs, self.outputs = ([v.name for v in values] for values in (graph.input, graph.output))

    def get_inputs(self) -> list[Input]:
        return [Input(name) for name in self.inputs]

    def run(self, names: Sequence[str] | None, inputs: Mapping[str, Any]) -> list[np.ndarray]:
        with tempfile.TemporaryDirectory() as name:
            folder, given = Path(name), {n: np.ascontiguousarray(x) for n, x in inputs.items()}
            (folder / "model.onnx").write_bytes(self.content)
            described = [{"name": n, "type": x.dtype.name, "dims": x.shape} for n, x in given.items()]
            for i, x in enumerate(given.values()):
                (folder / f"in{i}.bin").write_bytes(x.tobytes())
            request = {"inputs": described, "outputs": list(names or self.outputs)}
            (folder / "request.json").write_text(json.dumps(request))
            done = subprocess.run(
                [str(NODE), "run.mjs", str(folder)], cwd=FOLDER, capture_output=True, text=True, check=False
            )
            assert done.returncode == 0, done.stderr
            answer = json.loads((folder / "answer.json").read_text())
            return [
                np.fromfile(folder / f"out{i}.bin", a["type"]).reshape(a["dims"]).copy() for i, a in enumerate(answer)
            ]


class Sum(nn.Module):
    """A residual add of two inputs, and a layer that reads it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 2, 1)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return self.conv(a + b)


WASM = Engine("onnxruntime-web", "onnxruntime", WasmSession, lambda path: {})


@pytest.mark.parametrize("target", ["onnxruntime", "portable"])
@pytest.mark.parametrize(
    ("make", "policy"),
    [(OptionA, "w4a4"), (torchvision.models.resnet18, "w8a8"), (torchvision.models.mobilenet_v2, "w4a8")],
)
def test_not_one_code_differs_in_networks(
    make: Callable[[], nn.Module], policy: str, target: str, tmp_path: Path
) -> None:
    x = torch.randn(8, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    prepared = qat.prepare(build(make), policy, x[:2])
    qat.calibrate(prepared, [x])
    integer = qat.convert(prepared)
    assert not any(m.needs_fma for m in integer.modules() if isinstance(m, IntegerAdd))
    qat.export_onnx(integer, x[:2], tmp_path / "m.onnx", target=target)
    check = verify_onnx(tmp_path / "m.onnx", integer, [x], engine=WASM)
    assert check.passed, check
    assert (check.float_ties, check.propagated, check.top1_agreement) == (0, 0, 1.0)


@pytest.mark.parametrize("moved", [True, False])
def test_no_code_of_an_adversarial_add_differs(moved: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All 256 x 256 pairs of codes, with scales that do differ if they are not moved."""
    generator = np.random.default_rng(0)
    scales = next(s for _ in range(200) if (add(s := adversarial_scales(generator), True) != add(s, False)).any())
    if not moved:
        monkeypatch.setattr(encodings, "with_short_ratios", lambda scales, *_: dict(scales))
    a, b = torch.meshgrid(*[(torch.arange(256.0) - 128) * scales[x] for x in "ab"], indexing="ij")
    inputs = a[None, None], b[None, None]
    prepared = qat.prepare(Sum().eval(), "w8a8", inputs)
    qat.calibrate(prepared, [inputs])
    for site, name in (("a_input", "a"), ("b_input", "b"), ("add", "y")):
        quantizer = prepared.get_submodule(f"sites.{site}")
        quantizer.set_qparams(QParams(torch.tensor([scales[name]]), torch.zeros(1)))
    integer = qat.convert(prepared)
    qat.export_onnx(integer, inputs, tmp_path / "m.onnx")
    assert verify_onnx(tmp_path / "m.onnx", integer, [inputs]).code_mismatches == 0
    check = verify_onnx(tmp_path / "m.onnx", integer, [inputs], engine=WASM)
    assert (check.code_mismatches == 0) == moved, check
