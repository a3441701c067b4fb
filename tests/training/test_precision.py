"""Fits in reduced precision: the network computes in bfloat16 or float16, quantization in float32."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from qat import Grid, QuantSpec
from qat.export import OnnxRuntimeNetwork
from qat.functional import fake_quantize
from qat.quantizers import LSQ
from qat.training.callbacks import ExportONNX, PTQBaselines, QuantizationAwareTraining, Report
from qat.transform import load_policy, quantizers
from tests.training.user_modules import LIGHTNING, Classifier, Data, Manual, ModuleAsNetwork, trainer

pytestmark = LIGHTNING

GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="float16 is trained on a GPU, and there is none here")
NETWORK = {"bf16-mixed": torch.bfloat16, "bf16-true": torch.bfloat16, "64-true": torch.float64}


def qat() -> QuantizationAwareTraining:
    return QuantizationAwareTraining(QUICK, quantizer_lr_ratio=0.01, calibration_images=64)


QUICK = load_policy("w4a4").with_parts("LSQ", "MinMax")
"""Calibrates quickly."""


class RecordDtypes(L.Callback):
    """Checks what quantizers get and return, and records the dtypes of parameters, gradients and scales in the first step."""

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        self.handles = [q.register_forward_hook(self._note) for q in quantizers(pl_module).values()]
        self.given: set[torch.dtype] = set()

    def _note(self, quantizer: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
        assert isinstance(quantizer, LSQ)
        x = inputs[0].detach()
        assert output.dtype == x.dtype
        if quantizer.n_qparams == 1:  # the formula, by numpy, in float32
            scale, zero_point = (p.cpu().numpy() for p in quantizer.qparams())
            grid = quantizer.spec.grid
            codes = np.clip(np.round(x.float().cpu().numpy() / scale) + zero_point, grid.qmin, grid.qmax)
            expected = torch.from_numpy(((codes - zero_point) * scale).astype(np.float32))
            assert torch.equal(output.detach().cpu(), expected.to(x.dtype))
        self.given.add(x.dtype)

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        for handle in self.handles:
            handle.remove()
        found = list(quantizers(pl_module).values())
        self.scales = {q.scale.dtype for q in found} | {q.scale.grad.dtype for q in found}  # type: ignore[union-attr]
        own = {id(q.scale) for q in found}
        self.weights = {p.dtype for p in pl_module.parameters() if id(p) not in own}


@pytest.mark.parametrize(
    ("kind", "precision"),
    [
        (Classifier, "bf16-mixed"),
        (Manual, "bf16-mixed"),
        (ModuleAsNetwork, "bf16-true"),
        (Classifier, "64-true"),
        pytest.param(Classifier, "16-mixed", marks=GPU),
        pytest.param(Manual, "16-mixed", marks=GPU),
    ],
)
def test_scales_and_their_arithmetic_are_float32_in_every_precision(kind: Any, precision: Any, tmp_path: Path) -> None:
    model, types = kind(), RecordDtypes()
    accelerator = "gpu" if precision == "16-mixed" else "cpu"
    before = {}

    class Start(L.Callback):
        def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
            before.update({name: q.scale.detach().clone() for name, q in quantizers(pl_module).items()})

    trainer(tmp_path, qat(), types, Start(), precision=precision, accelerator=accelerator).fit(model, datamodule=Data())
    assert types.scales == {torch.float32}
    network = NETWORK.get(precision, torch.float16)
    assert network in types.given
    assert types.weights == {network if precision.endswith("true") else torch.float32}
    after = {name: q.scale.detach().cpu() for name, q in quantizers(model).items()}
    assert all(bool(torch.isfinite(scale).all()) for scale in after.values())
    assert any(not torch.equal(after[name], scale.cpu()) for name, scale in before.items())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("where", ["forward", "forward and backward"])
def test_under_autocast_values_and_gradients_are_those_of_float32(dtype: torch.dtype, where: str) -> None:
    """Lightning's manual optimization runs backward inside of autocast, the automatic one outside."""
    torch.manual_seed(0)
    x = (torch.randn(64, 64) * 3).to(dtype).requires_grad_()
    scale = torch.tensor([0.3], requires_grad=True)
    with torch.autocast("cpu", dtype):
        y = fake_quantize(x, scale, 0, -8, 7)
        if where == "forward and backward":
            y.backward(torch.ones_like(y))
    if where == "forward":
        y.backward(torch.ones_like(y))
    exact = x.detach().float().numpy()
    codes = np.round(np.clip(exact / np.float32(0.3), -8, 7))
    assert y.dtype == dtype
    assert torch.equal(y.detach(), torch.from_numpy(codes * np.float32(0.3)).to(dtype))
    v = exact / np.float32(0.3)
    inside = (v > -8) & (v < 7)
    gradient = np.where(inside, codes - v, codes).astype(np.float64).sum()  # LSQ, eq. 3
    assert scale.grad is not None
    assert scale.grad.dtype == torch.float32
    assert float(scale.grad) == pytest.approx(gradient, rel=1e-5)
    assert x.grad is not None
    assert torch.equal(x.grad, torch.from_numpy(inside).to(dtype))


def test_a_bfloat16_scale_would_not_move() -> None:
    """Why `.to(bfloat16)` leaves quantizers alone: a step of a thousandth is less than half of the last bit."""
    scale = torch.tensor(0.1, dtype=torch.bfloat16)
    assert float(scale * (1 + 1e-3)) == float(scale)
    quantizer = LSQ(QuantSpec(Grid(8)))
    quantizer.set_range(torch.tensor([-12.7]), torch.tensor([12.7]))
    before = quantizer.bfloat16().scale.detach()
    assert bool((before * (1 + 1e-3) > before).all())


@pytest.mark.parametrize("precision", ["bf16-mixed", pytest.param("bf16-true", marks=pytest.mark.slow)])
def test_the_report_compares_in_float32_and_notes_the_precision_of_the_fit(precision: Any, tmp_path: Path) -> None:
    class Coarse(Classifier):
        """What it logs tells in which precision it was tested; it computes something after the network, too."""

        def __init__(self) -> None:
            super().__init__()
            self.after = nn.LayerNorm(4)

        def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
            logits = self(batch[0])
            self.after(logits)
            self.log("test/top1", {torch.float32: 0.75, torch.bfloat16: 0.5}[logits.dtype])

    report = Report(tmp_path)
    export = ExportONNX(tmp_path / "model.onnx")
    callbacks = [qat(), PTQBaselines(["MinMax"]), export, report]
    trainer(tmp_path, *callbacks, precision=precision).fit(Coarse(), datamodule=Data())
    assert report.results is not None
    rows = {row.name: row for row in report.results.rows}
    assert {row.top1 for row in rows.values()} == {0.75}
    assert rows["QAT fake-quant"].note == (f"50.00 in {precision}, as it was trained: -25.00 against float32")
    assert precision in (tmp_path / "report.md").read_text()
    assert report.results.verification is not None
    assert report.results.verification.exact
    assert isinstance(export.artefact.network(), OnnxRuntimeNetwork)  # type: ignore[union-attr]


def test_the_report_of_a_fit_in_float32_has_no_note_of_the_precision(tmp_path: Path) -> None:
    report = Report(tmp_path)
    trainer(tmp_path, qat(), report).fit(Classifier(), datamodule=Data())
    assert report.results is not None
    assert not any(re.search(r"as it was trained", row.note) for row in report.results.rows)
