"""The report of a fit, with all callbacks of the comparison."""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from qat.report import read_results
from qat.report.results.metric import MetricInfo
from qat.training.callbacks import ExportONNX, OscillationControl, PTQBaselines, QuantizationAwareTraining, Report
from qat.training.comparison.entries import Entry
from qat.training.comparison.evaluate import Evaluation
from qat.training.comparison.other_runs import compare_with_others
from qat.transform import load_policy, prepare, quantizers
from tests.training.callbacks.comparison_fits import MAKERS, ROW_NAMES, callback_of, fit
from tests.training.user_modules import LIGHTNING, Classifier, Data, ModuleAsNetwork, images, trainer

pytestmark = LIGHTNING


@pytest.mark.parametrize("kind", [Classifier, ModuleAsNetwork])
def test_four_callbacks_report_on_anybodys_module(kind: type[Classifier], tmp_path: Path) -> None:
    model = kind()
    fitting = fit(model, tmp_path)
    results = read_results(tmp_path / "results.json")
    assert results == callback_of(fitting, Report).results
    assert [row.name for row in results.rows] == ROW_NAMES
    rows = {row.name: row for row in results.rows}
    assert rows["QAT step 0"].top1 == rows["PTQ MSE"].top1
    assert "predicts the same class as PTQ MSE" in rows["QAT step 0"].note
    assert rows["QAT integer"].top1 == rows["QAT in ONNX Runtime"].top1
    assert rows["QAT in ONNX Runtime"].size_bytes == (tmp_path / "model.onnx").stat().st_size
    assert rows["QAT in ONNX Runtime"].latency_ms_batch1 is not None
    assert rows["PTQ MSE"].size_bytes < rows["float"].size_bytes
    assert results.verification is not None
    assert results.verification.exact
    assert results.verification.images == 48
    assert (results.data.train, results.data.val, results.data.test) == (128, 32, 48)
    assert (results.data.image_shape, results.data.classes) == ((1, 8, 8), 4)
    assert results.training is not None
    assert (results.training.epochs, results.training.steps) == (2, 8)
    assert len(results.training.val_top1) == 2
    assert "QAT in ONNX Runtime" in (tmp_path / "report.md").read_text()
    assert isinstance(model, kind)


TWICE: dict[str, tuple[Callable[[Path], L.Callback], str]] = {
    "QuantizationAwareTraining": (MAKERS["qat"], "write one, network='' for all networks"),
    "PTQBaselines": (MAKERS["ptq"], "write one, whose ladder has all lists of passes"),
    "ExportONNX": (MAKERS["export"], "write one, whose targets are all further files"),
    "OscillationControl": (lambda path: OscillationControl(), "write one, with dampening and freezing both"),
}


@pytest.mark.parametrize("kind", TWICE)
def test_two_callbacks_of_one_kind_are_refused(kind: str, tmp_path: Path) -> None:
    make, instead = TWICE[kind]
    both = [make(tmp_path), make(tmp_path)]
    others = [] if kind == "QuantizationAwareTraining" else [MAKERS["qat"](tmp_path)]
    with pytest.raises(ValueError, match=f"^the Trainer has 2 callbacks {kind}: {instead}"):
        trainer(tmp_path, *others, *both).fit(Classifier(), datamodule=Data())


def test_rows_of_other_runs_have_files_and_names_of_their_own(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"gone\.onnx does not exist: write the file"):
        Report(other_runs={"a": tmp_path / "gone.onnx"})
    (file := tmp_path / "other.onnx").write_bytes(b"")
    with pytest.raises(ValueError, match="the name 'QAT integer' of a row of other runs is that of another row"):
        Report(other_runs={"QAT integer": file})
    report = Report(tmp_path, other_runs={"PTQ MSE": file})
    with pytest.raises(
        ValueError, match="other_runs and PTQBaselines both have a row 'PTQ MSE': give one another name"
    ):
        trainer(tmp_path, MAKERS["qat"](tmp_path), PTQBaselines(), report).fit(Classifier(), datamodule=Data())


def test_another_run_is_compared_with_the_artefact_and_not_with_a_further_target() -> None:
    def entry(kind: str, size: int) -> Any:
        return Entry(kind, kind, nn.Identity(), size), Evaluation({}, None)  # type: ignore[arg-type]

    measured = [entry("other_run", 30), entry("qat_onnxruntime", 20), entry("qat_target", 10)]
    (found,) = compare_with_others(measured, MetricInfo("top-1", "%", "max", True))
    assert (found.row, found.size_bytes, found.other_size_bytes) == ("qat_onnxruntime", 20, 30)


@pytest.mark.slow
def test_the_order_of_the_callbacks_does_not_matter(tmp_path: Path) -> None:
    found = []
    for name, order in {"one": tuple(MAKERS), "other": tuple(reversed(MAKERS))}.items():
        torch.manual_seed(1)
        fit(Classifier(), tmp_path / name, order)
        rows = read_results(tmp_path / name / "results.json").rows
        found.append([(row.name, row.top1, row.size_bytes) for row in rows])
    assert found[0] == found[1]


def test_measuring_leaves_the_users_module_and_data_as_they_are(tmp_path: Path) -> None:
    model, data = Classifier(), Data()
    fitting = trainer(tmp_path, *(make(tmp_path) for make in MAKERS.values()), epochs=1)

    class Before(L.Callback):
        def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
            self.state = {k: v.clone() for k, v in pl_module.state_dict().items()}

    before = Before()
    fitting.callbacks.append(before)  # type: ignore[attr-defined]
    fitting.fit(model, datamodule=data)
    assert all(torch.equal(v, before.state[k]) for k, v in model.state_dict().items())
    assert data.trainer is fitting
    assert model.trainer is fitting
    assert all(not q._forward_hooks and not q._forward_pre_hooks for q in quantizers(model).values())
    assert not model.net._forward_hooks


def test_dataloaders_can_be_passed_where_there_is_no_datamodule(tmp_path: Path) -> None:
    test = DataLoader(images(20, 5), 10)
    report = Report(tmp_path, dataloaders=test)
    callbacks = [MAKERS["qat"](tmp_path), PTQBaselines(["MSE"]), report]
    trainer(tmp_path, *callbacks).fit(Classifier(), DataLoader(images(64), 32))
    assert report.results is not None
    assert report.results.data.test == 20
    assert [row.name for row in report.results.rows] == [ROW_NAMES[0], *ROW_NAMES[2:6]]
    assert report.results.verification is None


def test_a_resumed_fit_has_its_step_0_again(tmp_path: Path) -> None:
    first = fit(Classifier(), tmp_path)
    first.save_checkpoint(tmp_path / "half.ckpt")
    expected = {row.name: row.top1 for row in callback_of(first, Report).results.rows}
    again = trainer(tmp_path, *(make(tmp_path) for make in MAKERS.values()), epochs=3)
    again.fit(Classifier(), datamodule=Data(), ckpt_path=tmp_path / "half.ckpt", weights_only=True)
    found = {row.name: row.top1 for row in callback_of(again, Report).results.rows}
    assert [found[name] for name in ROW_NAMES[:4]] == [expected[name] for name in ROW_NAMES[:4]]


def test_a_step_0_that_is_not_ptq_is_reported_loudly(tmp_path: Path) -> None:
    class ChangeOneScale(L.Callback):
        def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
            with torch.no_grad():
                for parameter in (pl_module.net.head.weight, pl_module.net.head.bias):  # type: ignore[union-attr]
                    parameter.neg_()

    report = Report(tmp_path)
    callbacks = [MAKERS["qat"](tmp_path), ChangeOneScale(), PTQBaselines(), report]
    with pytest.warns(UserWarning, match="QAT before its first step predicts another class than PTQ MSE for"):
        trainer(tmp_path, *callbacks).fit(Classifier(), datamodule=Data())
    assert report.results is not None
    note = next(row.note for row in report.results.rows if row.name == "QAT step 0")
    assert note.startswith("WARNING: predicts another class")


def test_a_step_0_on_other_levels_than_those_of_ptq_is_no_alarm(tmp_path: Path) -> None:
    report = Report(tmp_path)
    policy = load_policy("w3a8", weight={"quantizer": "PowersOfTwo"}, first_last_bits=None)
    callbacks = [QuantizationAwareTraining(policy, calibration_images=64), PTQBaselines(), report]
    trainer(tmp_path, *callbacks).fit(Classifier(), datamodule=Data())
    assert report.results is not None
    assert not next(row.note for row in report.results.rows if row.name == "QAT step 0")


@pytest.mark.parametrize("name", ["ptq", "export", "report"])
def test_a_missing_companion_is_one_sentence(name: str, tmp_path: Path) -> None:
    kind = type(MAKERS[name](tmp_path)).__name__
    with pytest.raises(ValueError, match=f"^{kind} needs QuantizationAwareTraining beside it: L.Trainer"):
        trainer(tmp_path, MAKERS[name](tmp_path)).fit(Classifier(), datamodule=Data())


@pytest.mark.parametrize("name", ["export", "report"])
def test_no_test_data_is_said_before_the_fit(name: str, tmp_path: Path) -> None:
    class Untouched(Classifier):
        def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
            pytest.fail("training began")

    with pytest.raises(ValueError, match=r"there is no test data to measure on: give trainer\.fit a datamodule"):
        trainer(tmp_path, MAKERS["qat"](tmp_path), MAKERS[name](tmp_path)).fit(Untouched(), DataLoader(images(64), 32))


def test_a_metric_that_is_not_logged_is_answered_with_those_that_are(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"test_step logs no 'test/acc' \(it logs test/top1\): pass the name"):
        trainer(tmp_path, MAKERS["qat"](tmp_path), Report(tmp_path, metric="test/acc")).fit(
            Classifier(), datamodule=Data()
        )
    assert not (tmp_path / "results.json").exists()


def test_a_test_step_that_does_not_run_the_network_is_refused(tmp_path: Path) -> None:
    class Elsewhere(Classifier):
        def __init__(self) -> None:
            super().__init__()
            self.average = copy.deepcopy(self.net)

        def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
            self.accuracy(self.average(batch[0]), batch[1])
            self.log("test/top1", self.accuracy)

    callbacks = [QuantizationAwareTraining("w4a4", network="net"), Report(tmp_path)]
    with pytest.raises(
        ValueError, match=r"^test_step of Elsewhere does not run the network that is measured, its submodule"
    ):
        trainer(tmp_path, *callbacks).fit(Elsewhere(), datamodule=Data())


def test_results_are_plain_json(tmp_path: Path) -> None:
    fit(Classifier(), tmp_path, ("qat", "report"))
    data = json.loads((tmp_path / "results.json").read_text())
    assert data["rows"][0]["name"] == "float"
    assert data["recipe"] == "Classifier"


def test_a_network_that_was_prepared_before_is_reported_on_and_stays_in_training_mode(tmp_path: Path) -> None:
    model = Classifier()
    model.net = prepare(model.net, "w4a4")  # type: ignore[assignment]
    fit(model, tmp_path, ("qat", "report"))
    assert read_results(tmp_path / "results.json").data.classes == 4
    assert all(module.training for module in model.net.modules())


def test_a_resumed_fit_compares_with_the_float_network_that_it_began_with(tmp_path: Path) -> None:
    def resume(module: Classifier, *callbacks: L.Callback, epochs: int = 2) -> None:
        qat_ = QuantizationAwareTraining("w8a8", calibration_images=64, quantizer_lr_ratio=0.01)
        path = None if epochs == 1 else tmp_path / "first.ckpt"
        fitting = trainer(tmp_path, qat_, *callbacks, epochs=epochs)
        fitting.fit(module, datamodule=Data(), ckpt_path=path)
        if path is None:
            fitting.save_checkpoint(tmp_path / "first.ckpt")

    resume(Classifier(), epochs=1)
    resume(Classifier(), PTQBaselines(["MinMax"]))
    other = Classifier()
    with torch.no_grad():
        other.net.head.bias[0] += 1
    for callback in (PTQBaselines(["MinMax"]), Report(tmp_path), ExportONNX(tmp_path / "m.onnx", tmp_path / "f.onnx")):
        with pytest.raises(
            ValueError, match=r"began with other float weights than the module has now, which \w+ would"
        ):
            resume(copy.deepcopy(other), callback)
    resume(other)  # nothing compares
