import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor
from torch.utils.data import DataLoader

from qat.export import OnnxRuntimeNetwork, QuantizeStatic
from qat.ptq import AdaRound, Calibrate, CrossLayerEqualization
from qat.report import read_results
from qat.training.callbacks import ExportONNX, PTQBaselines, QuantizationAwareTraining, Report
from qat.training.callbacks.ptq_baselines import label
from qat.transform import load_policy, prepare, quantizers
from tests.training import user_modules
from tests.training.user_modules import LIGHTNING, Classifier, Data, Itself, images, trainer

pytestmark = LIGHTNING

Make = Callable[[Path], L.Callback]
MAKERS: dict[str, Make] = {
    "qat": lambda path: QuantizationAwareTraining("w4a4", quantizer_lr_ratio=0.01, calibration_images=64),
    "ptq": lambda path: PTQBaselines(),
    "export": lambda path: ExportONNX(path / "model.onnx"),
    "report": lambda path: Report(path),
}
NAMES = [
    "float", "PTQ min-max", "PTQ MSE", "QAT step 0", "QAT fake-quant", "QAT integer", "QAT in ONNX Runtime",
]  # fmt: skip


def fit(model: L.LightningModule, path: Path, order: tuple[str, ...] = tuple(MAKERS), **options: Any) -> L.Trainer:
    fitting = trainer(path, *(MAKERS[name](path) for name in order), epochs=2, **options)
    fitting.fit(model, datamodule=Data())
    return fitting


def of(fitting: Any, kind: type[Any]) -> Any:
    return next(callback for callback in fitting.callbacks if isinstance(callback, kind))


@pytest.mark.parametrize("kind", [Classifier, Itself])
def test_four_callbacks_report_on_anybodys_module(kind: type[Classifier], tmp_path: Path) -> None:
    model = kind()
    fitting = fit(model, tmp_path)
    results = read_results(tmp_path / "results.json")
    assert results == of(fitting, Report).results
    assert [row.name for row in results.rows] == NAMES
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


def test_the_order_of_the_callbacks_does_not_matter(tmp_path: Path) -> None:
    found = []
    for i, order in enumerate(itertools.islice(itertools.permutations(MAKERS), 0, 24, 7)):
        torch.manual_seed(1)
        fit(Classifier(), tmp_path / str(i), order)
        rows = read_results(tmp_path / str(i) / "results.json").rows
        found.append([(row.name, row.top1, row.size_bytes) for row in rows])
    assert found.count(found[0]) == len(found) == 4


def test_the_best_checkpoint_is_what_is_exported(tmp_path: Path) -> None:
    class Spoiled(Classifier):
        """After its first epoch it knows nothing any more."""

        def on_train_epoch_start(self) -> None:
            if self.current_epoch == 1:
                with torch.no_grad():
                    self.net.head.weight.mul_(0.0)

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=0.0)

    checkpoint = ModelCheckpoint(tmp_path / "checkpoints", monitor="val/top1", mode="max")
    model = Spoiled()
    with torch.no_grad():
        model.net.head.weight.copy_(torch.eye(4).repeat_interleave(6, dim=1))
    callbacks = [*(make(tmp_path) for make in MAKERS.values()), checkpoint]
    fitting = trainer(tmp_path, *callbacks, epochs=2, enable_checkpointing=True)
    fitting.fit(model, datamodule=Data())
    results = of(fitting, Report).results
    assert results.training.best_epoch == 1
    exported = of(fitting, ExportONNX).artefact.network()
    assert len(exported(Data().test.tensors[0]).argmax(1).unique()) > 1


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
    assert [row.name for row in report.results.rows] == [NAMES[0], *NAMES[2:6]]
    assert report.results.verification is None


def test_an_outside_baseline_is_a_row_that_counts_in_no_verdict(tmp_path: Path) -> None:
    name = "ONNX Runtime quantize_static (W8A8)"
    ptq = PTQBaselines(["MinMax"], outside={name: QuantizeStatic()})
    callbacks = [MAKERS["qat"](tmp_path), ptq, MAKERS["export"](tmp_path), MAKERS["report"](tmp_path)]
    trainer(tmp_path, *callbacks).fit(Classifier(), datamodule=Data())
    results = read_results(tmp_path / "results.json")
    rows = {row.name: row for row in results.rows}
    assert list(rows)[:3] == ["float", "PTQ min-max", name]
    file = tmp_path / "quantize_static.onnx"
    assert (rows[name].kind, rows[name].size_kind, rows[name].size_bytes) == ("outside", "file", file.stat().st_size)
    x, y = Data().test.tensors
    assert rows[name].top1 == pytest.approx((OnnxRuntimeNetwork(file)(x).argmax(1) == y).float().mean().item())
    assert all(v is not None for v in (rows[name].latency_ms_batch1, rows[name].latency_ms_batch32, rows[name].seconds))
    assert results.verdict.ptq == "PTQ min-max"
    assert name in (tmp_path / "report.md").read_text()


def test_a_resumed_fit_has_its_step_0_again(tmp_path: Path) -> None:
    first = fit(Classifier(), tmp_path)
    first.save_checkpoint(tmp_path / "half.ckpt")
    expected = {row.name: row.top1 for row in of(first, Report).results.rows}
    again = trainer(tmp_path, *(make(tmp_path) for make in MAKERS.values()), epochs=3)
    again.fit(Classifier(), datamodule=Data(), ckpt_path=tmp_path / "half.ckpt", weights_only=True)
    found = {row.name: row.top1 for row in of(again, Report).results.rows}
    assert [found[name] for name in NAMES[:4]] == [expected[name] for name in NAMES[:4]]


def test_a_step_0_that_is_not_ptq_is_reported_loudly(tmp_path: Path) -> None:
    class Meddling(L.Callback):
        def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
            with torch.no_grad():
                for parameter in (pl_module.net.head.weight, pl_module.net.head.bias):  # type: ignore[union-attr]
                    parameter.neg_()

    report = Report(tmp_path)
    callbacks = [MAKERS["qat"](tmp_path), Meddling(), PTQBaselines(), report]
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


def test_a_network_that_was_prepared_by_hand_has_no_baselines(tmp_path: Path) -> None:
    model = Classifier()
    trainer(tmp_path, MAKERS["qat"](tmp_path)).fit(model, datamodule=Data())
    with pytest.raises(ValueError, match="PTQBaselines needs the float network, but it was prepared before"):
        trainer(tmp_path, MAKERS["qat"](tmp_path), PTQBaselines()).fit(model, datamodule=Data())


def test_observers_have_names_for_people() -> None:
    assert label("MinMax") == "min-max"
    assert label({"_target_": "qat.observers.MSE"}) == "MSE"
    assert list(PTQBaselines({"mine": [Calibrate("MSE")]}).ladder) == ["mine"]
    with pytest.raises(ValueError, match="'Foo' is no observer: write one of"):
        PTQBaselines(["Foo"])
    with pytest.raises(ValueError, match="PTQBaselines has nothing to compare with"):
        PTQBaselines([])


def test_training_does_not_depend_on_the_ladder(tmp_path: Path) -> None:
    ladder = {
        "PTQ AdaRound": [CrossLayerEqualization(), Calibrate("MinMax"), AdaRound(3)],
        "PTQ": [Calibrate("MinMax")],
    }
    found = []
    for rungs in (ladder, {"PTQ": ladder["PTQ"]}):
        torch.manual_seed(5)
        model, ptq = Classifier(), PTQBaselines(rungs)
        trainer(tmp_path, MAKERS["qat"](tmp_path), ptq).fit(model, datamodule=Data())
        assert list(ptq.networks) == list(ptq.seconds) == list(rungs)
        found.append({name: value.clone() for name, value in model.state_dict().items()})
    assert all(torch.equal(value, found[1][name]) for name, value in found[0].items())


def test_a_list_of_passes_that_needs_a_graph_is_left_out_where_there_is_none(tmp_path: Path) -> None:
    class Net(user_modules.Net):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x if x.sum() != 0 else -x)

    class Branching(Classifier):
        def __init__(self) -> None:
            super().__init__()
            self.net = Net()

    ptq = PTQBaselines({"PTQ MSE": [Calibrate()], "PTQ AdaRound": [Calibrate(), AdaRound(1)]})
    with pytest.warns(UserWarning, match=r"PTQ AdaRound is left out: Net cannot be traced"):
        trainer(tmp_path, MAKERS["qat"](tmp_path), ptq).fit(Branching(), datamodule=Data())
    assert list(ptq.networks) == ["PTQ MSE"]


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
