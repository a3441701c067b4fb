"""A file that is not what was trained never gets the name that is deployed, and its fit ends with an error."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import nn

import qat
from qat.export import Target, Verification
from qat.training.callbacks import ExportONNX
from qat.training.comparison import artefact
from tests.training.callbacks.comparison_fits import MAKERS, callback_of, fit
from tests.training.user_modules import LIGHTNING, Classifier, Data, trainer

pytestmark = LIGHTNING

TWO = ("qat", "export")


def with_one_wrong_code(_: Target, model: nn.Module, example: Any, path: Path) -> None:
    qat.export_onnx(model, example, path)
    file = onnx.load(path)
    tensor = next(t for t in file.graph.initializer if t.data_type == onnx.TensorProto.INT8 and t.dims)
    codes = onnx.numpy_helper.to_array(tensor).copy()
    codes.reshape(-1)[0] ^= 1
    tensor.CopyFrom(onnx.numpy_helper.from_array(codes.astype(np.int8), tensor.name))
    onnx.save(file, path)


def converted_wrongly(prepared: nn.Module) -> nn.Module:
    integer = qat.convert(prepared)
    integer.conv1.bias += 2000
    return integer


def files(folder: Path) -> set[str]:
    return {path.name for path in folder.rglob("*.onnx")}


def test_a_wrong_file_ends_a_fit_of_callbacks_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Target, "write", with_one_wrong_code)
    with pytest.raises(qat.export.VerificationError, match=r"do not deploy .*model\.unverified\.onnx: [1-9][\d,]* of "):
        fit(Classifier(), tmp_path, order=TWO)
    assert files(tmp_path) == {"model.unverified.onnx"}


def test_a_verified_file_has_its_name_and_its_proof(tmp_path: Path) -> None:
    fitting = fit(Classifier(), tmp_path, order=TWO)
    assert files(tmp_path) == {"model.onnx"}
    assert callback_of(fitting, ExportONNX).artefact.path == tmp_path / "model.onnx"
    proof = qat.verify(tmp_path / "model.onnx")
    assert proof.passed
    assert set(proof.hashes) == {"file", "content", "model", "policy"}


@pytest.mark.filterwarnings("ignore:The integer model does not compute")
def test_the_report_of_a_wrong_model_is_complete_and_ends_in_the_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(artefact, "convert", converted_wrongly)
    fitting = trainer(tmp_path, *(make(tmp_path) for make in MAKERS.values()), epochs=1)
    with pytest.raises(qat.export.VerificationError, match="does not compute what was trained"):
        fitting.fit(Classifier(), datamodule=Data())
    assert files(tmp_path) == {"model.unverified.onnx"}
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["verdict"]["outcome"] == "not_verified"
    assert results["verification"]["file"] == "model.unverified.onnx"
    assert "⛔ **NOT VERIFIED" in (tmp_path / "report.md").read_text()
    printed = " ".join(capsys.readouterr().out.split())
    assert "NOT VERIFIED, do not deploy model.unverified.onnx" in printed
    assert "QAT WON" not in printed


class Writer:
    """A target that writes a text. meanwhile: what another process does while the file is verified."""

    runs_in = "nothing"

    def __init__(self, text: str, passes: bool, meanwhile: Callable[[], Any] = lambda: None) -> None:
        self.text, self.passes, self.meanwhile = text, passes, meanwhile

    def write(self, integer: Any, example: Any, path: Path) -> None:
        path.write_text(self.text)

    def verify(self, path: Path, *_: Any) -> Verification:
        self.meanwhile()
        return Verification(codes_compared=1, code_mismatches=int(not self.passes), samples=1)


def test_what_gets_the_name_is_what_was_verified(tmp_path: Path) -> None:
    def write(target: Any) -> Path:
        network = nn.Identity()
        return artefact.write_verified(network, network, lambda: iter([(torch.ones(1),)]), tmp_path / "m.onnx", target)[
            0
        ]

    assert write(Writer("wrong", passes=False)) == tmp_path / "m.unverified.onnx"
    assert write(Writer("right", True, lambda: write(Writer("wrong", passes=False)))).read_text() == "right"
    assert [path.name for path in tmp_path.iterdir()] == ["m.onnx"]


def test_the_ptq_model_that_the_verdict_recommends_is_a_verified_file(tmp_path: Path) -> None:
    model = Classifier(lr=0.05)
    trainer(tmp_path, epochs=5).fit(model, datamodule=Data())  # a float network that was not trained gives no verdict
    results = callback_of(fit(model, tmp_path), qat.callbacks.Report).results
    assert results.verdict.outcome in ("no_difference", "qat_lost")
    assert results.ptq_verification.file == "model_ptq.onnx"
    assert results.ptq_verification.exact
    assert qat.verify(tmp_path / "model_ptq.onnx").passed
    assert results.ptq_verification.hashes["model"] != results.verification.hashes["model"]
