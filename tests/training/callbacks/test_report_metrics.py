"""Reports of other metrics than accuracy: asked for before the training, right way up, with errors of their own."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from html import unescape
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.data import DataLoader, IterableDataset, TensorDataset
from torchmetrics import MeanAbsoluteError, MetricCollection, R2Score
from torchmetrics.classification import (
    MulticlassAccuracy,
    MulticlassAUROC,
    MulticlassConfusionMatrix,
    MulticlassJaccardIndex,
)

import qat
from qat.export import TARGETS, Verification, VerificationError
from qat.export.file_network import ReturnsAs
from qat.report import Results
from qat.report.pages.html import run_code
from qat.training.callbacks import ExportONNX, PTQBaselines, QuantizationAwareTraining, Report
from qat.training.comparison.sample_scores import metric_scores
from tests.training.user_modules import CLASSES, LIGHTNING, Classifier, Data, trainer

pytestmark = LIGHTNING


def regression_data(n: int, seed: int) -> DataLoader[Any]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 6, generator=generator)
    y = 20 + 10 * x @ torch.arange(1.0, 7.0) / 6
    return DataLoader(TensorDataset(x, y[:, None]), 24)


class Regression(L.LightningModule):
    """Temperatures; its weights are the right ones from the start, and a training with lr breaks them."""

    def __init__(self, how: str = "metric", lr: float = 0.0) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 1))
        with torch.no_grad():
            self.net[0].weight.copy_(torch.eye(6))
            self.net[1].weight.copy_(10 * torch.arange(1.0, 7.0)[None] / 6)
            self.net[0].bias.zero_()
            self.net[1].bias.fill_(20.5)
        self.mae = MeanAbsoluteError()
        self.how, self.lr = how, lr

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        loss = self(batch[0]).mean() * 100 if self.lr else F.l1_loss(self(batch[0]), batch[1])
        self.log("train/loss", loss)
        return loss

    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        output = self(batch[0])
        if self.how == "metric":
            self.mae(output, batch[1])
            self.log("test/mae", self.mae)
        elif self.how == "epoch end":
            self.mae.update(output, batch[1])
        else:
            self.log("test/mae", F.l1_loss(output, batch[1]))

    def on_test_epoch_end(self) -> None:
        if self.how == "epoch end":
            self.log("test/mae", self.mae.compute())
            self.mae.reset()

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=self.lr)


def fit(path: Path, model: L.LightningModule, **options: Any) -> Results:
    test = None if isinstance(model, Classifier) else regression_data(120, 1)
    report = Report(path, dataloaders=test, **options)
    callbacks = [
        QuantizationAwareTraining("w8a8", calibration_images=64, quantizer_lr_ratio=0.0),
        PTQBaselines(["MinMax"]),
        report,
    ]
    data: Any = {"datamodule": Data()} if test is None else {"train_dataloaders": regression_data(64, 0)}
    trainer(path, *callbacks).fit(model, **data)
    assert report.results is not None
    return report.results


@pytest.mark.parametrize(
    "how", [pytest.param("metric", marks=pytest.mark.slow), pytest.param("epoch end", marks=pytest.mark.slow), "value"]
)
def test_an_error_that_got_worse_has_lost(how: str, tmp_path: Path) -> None:
    mode: Any = {"mode": "min"} if how == "value" else {}
    results = fit(tmp_path, Regression(how, lr=0.02), metric="test/mae", unit="°C", **mode)
    rows = {row.name: row for row in results.rows}
    assert rows["QAT integer"].score > 5 * rows["PTQ min-max"].score > 1
    assert results.verdict.outcome == "qat_lost"
    assert "°C" in results.verdict.text
    assert "paired bootstrap" in results.verdict.text
    assert (results.metric.name, results.metric.mode, results.metric.errors) == ("mae", "min", "bootstrap")
    assert all(row.top1 is None and row.standard_error for row in results.rows)
    assert (results.data.samples, results.data.classes) == ("samples", None)
    text = (tmp_path / "report.md").read_text() + (tmp_path / "report.html").read_text()
    assert "mae °C" in text
    assert "binomial" not in text
    assert "top-1" not in text
    assert "image" not in text.replace('role="img"', "")


def test_a_value_that_says_not_which_way_is_better_is_asked_for_before_training(tmp_path: Path) -> None:
    class Untouched(Regression):
        def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
            pytest.fail("training began")

    with pytest.raises(ValueError, match=r"which way is 'mae' better\? Write Report\(metric=..., mode='min'\)"):
        fit(tmp_path, Untouched("value"), metric="test/mae")
    with pytest.raises(ValueError, match="test_step logs no 'test/rmse'"):
        fit(tmp_path, Untouched("value"), metric="test/rmse", mode="min")


@pytest.mark.slow
def test_objects_and_functions_see_outputs_and_targets(tmp_path: Path) -> None:
    objects = MetricCollection({"mae": MeanAbsoluteError(), "r2": R2Score()})
    of_objects = fit(tmp_path / "objects", Regression(), metric=objects)
    of_function = fit(
        tmp_path / "function",
        Regression(),
        mode="min",
        metric=lambda outputs, targets: (outputs - targets).abs().mean(),
    )
    for one, other in zip(of_objects.rows, of_function.rows, strict=True):
        assert one.score == pytest.approx(other.score, rel=1e-5)
        assert one.standard_error == pytest.approx(other.standard_error, rel=0.1)
        assert 0.5 < one.others["r2"] <= 1  # type: ignore[operator]
    assert of_objects.metric.mode == "min"


def test_the_lines_that_run_the_file_run_it(tmp_path: Path) -> None:
    report = Report(tmp_path)
    callbacks = [QuantizationAwareTraining("w8a8", calibration_images=64, quantizer_lr_ratio=0.0), report]
    trainer(tmp_path, *callbacks, ExportONNX(tmp_path / "model.onnx")).fit(Classifier(), datamodule=Data())
    assert report.results is not None
    lines = run_code(report.results)
    assert lines in unescape((tmp_path / "report.html").read_text())
    done = subprocess.run([sys.executable, "-c", lines], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout == "[(1, 4)]\n"


def test_accuracy_of_pixels_is_not_counted_as_if_pixels_were_images(tmp_path: Path) -> None:
    class Segmentation(Classifier):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, CLASSES, 3, padding=1))  # type: ignore[assignment]

        def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
            return F.cross_entropy(self(batch[0]).mean((2, 3)), batch[1])

        def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
            pass

        def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
            decided = self(batch[0]).argmax(1)
            self.log("test/acc", (decided == batch[1][:, None, None]).float().mean())

    results = fit(tmp_path, Segmentation(), metric="test/acc")
    assert results.metric.errors == "of the mean of batches"
    assert results.data.classes == CLASSES
    assert results.confusion is None


def test_a_float_network_at_chance_wins_nothing(tmp_path: Path) -> None:
    results = fit(tmp_path, Classifier())
    assert results.verdict.outcome == "float_untrained"
    assert "the float network was not trained" in results.verdict.text
    assert results.confusion is not None
    assert np.sum(results.confusion.counts) == results.data.test
    assert {t.kind for t in results.tensors} == {"weight", "activation"}
    assert all(sum(t.counts) > 0 for t in results.tensors)
    assert results.trajectories is not None
    assert results.trajectories.steps == [0, 1, 2, 3, 4]


def test_resampled_states_are_those_of_the_metric_itself() -> None:
    generator = torch.Generator().manual_seed(0)
    given: Any = [
        (torch.randint(3, (20, 4, 4), generator=generator), torch.randint(3, (20, 4, 4), generator=generator))
    ] * 2
    metric = MulticlassJaccardIndex(3)
    for batch in given:
        metric.update(*batch)
    scores = metric_scores(metric, given, float(metric.compute()))
    assert scores is not None
    values = [float(MulticlassJaccardIndex(3)(*(x[i : i + 1] for x in batch))) for batch in given for i in range(20)]
    assert scores.standard_error() == pytest.approx(np.std(values) / np.sqrt(40), rel=0.25)
    assert metric_scores(metric, given, 0.9) is None  # does not reproduce what was measured


def raises(outputs: Tensor, targets: Tensor) -> Tensor:
    raise KeyError("reg")


@pytest.mark.parametrize(
    ("metric", "said"),
    [
        (raises, r"Report\(metric=raises\) cannot be computed \(KeyError: 'reg'\): give"),
        (lambda outputs, targets: None, "gives a NoneType: give a function"),
        (lambda outputs, targets: "0.5 %", "gives a str: give a function"),
        (lambda outputs, targets: outputs, r"gives a tensor of shape \(48, 4\): give a metric with one number"),
        (MulticlassConfusionMatrix(CLASSES), r"gives a tensor of shape \(4, 4\)"),
        (MulticlassAccuracy(9), "cannot be computed"),
    ],
)
def test_metrics_that_give_no_number_are_refused_before_training(metric: Any, said: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=said):
        fit(tmp_path, Classifier(), metric=metric, mode="max")


def test_an_empty_collection_is_no_metric() -> None:
    with pytest.raises(ValueError, match=r"MetricCollection\(\{\}\)\) is not a metric"):
        Report(metric=MetricCollection({}))


class Strange(Data):
    def test_dataloader(self) -> Any:
        return {"all": DataLoader(self.test, 16)}


class Heads(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.one, self.other = nn.Linear(64, 8), nn.Linear(8, CLASSES), nn.Linear(8, 1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        x = self.body(x.flatten(1)).relu()
        return {"classes": self.one(x), "level": self.other(x)}


class TwoHeads(Classifier):
    def __init__(self) -> None:
        super().__init__()
        self.net = Heads()  # type: ignore[assignment]

    def forward(self, x: Tensor) -> Tensor:
        found: Any = self.net(x)
        return found["classes"] + 0 * found["level"]


@pytest.mark.slow
def test_files_return_what_the_module_reads_by_name(tmp_path: Path) -> None:
    report = Report(tmp_path)
    quantization = QuantizationAwareTraining("w8a8", calibration_images=64, quantizer_lr_ratio=1e-3)
    callbacks = [quantization, report, ExportONNX(tmp_path / "model.onnx")]
    trainer(tmp_path, *callbacks).fit(TwoHeads(), datamodule=Strange())
    assert report.results is not None
    rows = {row.kind: row for row in report.results.rows}
    assert rows["qat_onnxruntime"].score == rows["qat_integer"].score


@pytest.mark.parametrize("returned", [{"a": torch.ones(2), "b": (torch.zeros(2), 3)}, torch.ones(2), [torch.ones(2)]])
def test_a_file_returns_as_its_network(returned: Any) -> None:
    leaves = [x for x in tree_leaves(returned) if isinstance(x, Tensor)]
    file, network = nn.Module(), nn.Module()
    file.forward = lambda x: tuple(2 * leaf for leaf in leaves) if len(leaves) > 1 else 2 * leaves[0]  # type: ignore[method-assign]
    network.forward = lambda x: returned  # type: ignore[method-assign]
    found = ReturnsAs(file, network)(torch.zeros(1))
    assert str(found) == str(tree_map(lambda x: 2 * x if isinstance(x, Tensor) else x, returned))


def test_test_data_without_a_sample_are_named(tmp_path: Path) -> None:
    empty = DataLoader(TensorDataset(torch.zeros(0, 1, 8, 8), torch.zeros(0)))
    callbacks = [
        QuantizationAwareTraining("w8a8", calibration_images=64, quantizer_lr_ratio=0.0),
        Report(tmp_path, dataloaders=empty),
    ]
    with pytest.raises(ValueError, match="the test data have no sample"):
        trainer(tmp_path, *callbacks).fit(Classifier(), datamodule=Data())


def test_a_limit_that_leaves_no_training_data_is_named(tmp_path: Path) -> None:
    callbacks = [QuantizationAwareTraining("w8a8", calibration_images=64, quantizer_lr_ratio=0.0), Report(tmp_path)]
    with pytest.raises(ValueError, match="limit_train_batches=0 leaves nothing"):
        trainer(tmp_path, *callbacks, limit_train_batches=0).fit(Classifier(), datamodule=Data())


class Stream(IterableDataset[Any]):
    """Samples of unknown number."""

    def __iter__(self) -> Iterator[Any]:
        dataset: Any = regression_data(20, 1).dataset
        return iter([dataset[i] for i in range(20)])


def test_the_samples_that_were_measured_are_counted(tmp_path: Path) -> None:
    said = qat.report.Data("t", "T", 64, 0, 10_000, (6,), None, samples="days")
    for count, loader, data in (
        (20, DataLoader(Stream(), 8), None),
        (16, DataLoader(regression_data(20, 1).dataset, 8, drop_last=True), said),
    ):
        report = Report(tmp_path, dataloaders=loader, metric="test/mae", data=data)
        callbacks = [
            QuantizationAwareTraining("w8a8", calibration_images=64, quantizer_lr_ratio=0.0),
            PTQBaselines(["MinMax"]),
            report,
        ]
        trainer(tmp_path, *callbacks).fit(Regression(), train_dataloaders=regression_data(64, 0))
        assert report.results is not None
        assert report.results.data.test == count
        assert f"{count} test {report.results.data.samples}" in report.results.verdict.text


def test_a_metric_that_one_batch_has_no_value_of_is_measured_on_all(tmp_path: Path) -> None:
    def needs_more(outputs: Tensor, targets: Tensor) -> float:
        if len(targets) <= 24:
            raise ValueError("only one class")
        return float((outputs - targets).abs().mean())

    assert fit(tmp_path, Regression(), metric=needs_more, mode="min").metric.errors == "bootstrap"


@pytest.mark.parametrize("name", ["file/results", "file/model.onnx", "folder", "folder.unverified"])
def test_what_cannot_be_written_is_known_before_training(name: str, tmp_path: Path) -> None:
    class Untouched(Regression):
        def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
            pytest.fail("training began")

    (tmp_path / "file").write_text("")
    (tmp_path / f"{name}.onnx").mkdir() if name.startswith("folder") else None
    test = regression_data(24, 1)
    export = (
        name.removesuffix(".unverified").removesuffix(".onnx") + ".onnx" if name != "file/results" else "model.onnx"
    )
    callbacks = [
        QuantizationAwareTraining("w8a8", calibration_images=64, quantizer_lr_ratio=0.0),
        Report(tmp_path / "file" if name == "file/results" else tmp_path, dataloaders=test, metric="test/mae"),
        ExportONNX(tmp_path / export, dataloaders=test),
    ]
    with pytest.raises(ValueError, match=r"file/.* cannot be written \(|folder.*onnx is a folder"):
        trainer(tmp_path, *callbacks).fit(Untouched(), train_dataloaders=regression_data(64, 0))


def test_a_ptq_network_whose_file_differs_is_not_recommended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    verify, target = TARGETS[0].verify, TARGETS[0]

    def differs(path: Path, *rest: Any, **options: Any) -> Verification:
        found = verify(path, *rest, **options)
        found.code_mismatches += "_ptq" in path.name
        return found

    monkeypatch.setattr(type(target), "verify", lambda self, path, *rest, **options: differs(path, *rest, **options))
    test = regression_data(48, 1)
    report = Report(tmp_path, dataloaders=test, metric="test/mae")
    callbacks = [
        QuantizationAwareTraining("w8a8", calibration_images=64, quantizer_lr_ratio=0.0),
        PTQBaselines(["MinMax"]),
        ExportONNX(tmp_path / "model.onnx", dataloaders=test),
        report,
    ]
    with pytest.raises(VerificationError, match=r"do not deploy model_ptq.unverified.onnx"):
        trainer(tmp_path, *callbacks).fit(Regression(lr=0.02), train_dataloaders=regression_data(64, 0))
    assert report.results is not None
    assert report.results.verdict.outcome == "not_verified"


def share_right(outputs: Tensor, targets: Tensor) -> float:
    return float((outputs.argmax(1) == targets).float().mean())


@pytest.mark.parametrize(
    "metric",
    [
        share_right,
        pytest.param(MulticlassAccuracy(CLASSES, average="micro"), marks=pytest.mark.slow),
        pytest.param(MulticlassAccuracy(CLASSES, average="micro", top_k=2), marks=pytest.mark.slow),
        MetricCollection({"acc": MulticlassAccuracy(CLASSES), "auroc": MulticlassAUROC(CLASSES)}),
    ],
)
def test_accuracies_of_all_kinds_get_what_the_network_returns(metric: Any, tmp_path: Path) -> None:
    model = Classifier()
    mode: Any = {} if isinstance(metric, nn.Module) else {"mode": "max"}
    results = fit(tmp_path, model, metric=metric, **mode)
    of_float = results.rows[0]
    outputs, targets = Classifier().eval()(Data().test.tensors[0]), Data().test.tensors[1]
    expected = metric(outputs, targets)
    expected = expected["acc"] if isinstance(expected, dict) else expected
    assert (of_float.kind, of_float.score) == ("float", pytest.approx(float(expected)))
    assert results.metric.percent
    assert results.metric.chance is not None
    if metric is share_right:  # not that of one random order
        shares = [torch.bincount(x, minlength=CLASSES) / len(targets) for x in (outputs.argmax(1), targets)]
        assert results.metric.chance == pytest.approx(float(shares[0] @ shares[1]))
