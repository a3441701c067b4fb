"""Baselines of post-training quantization beside a fit."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from qat.export import OnnxRuntimeNetwork, QuantizeStatic
from qat.ptq import AdaRound, Calibrate, CrossLayerEqualization
from qat.report import read_results
from qat.training.callbacks import ExportONNX, PTQBaselines
from qat.training.comparison.row_names import ONNX_RUNTIME, observer_label
from qat.transform import prepare
from tests.training import user_modules
from tests.training.callbacks.comparison_fits import MAKERS
from tests.training.user_modules import LIGHTNING, Classifier, Data, trainer

pytestmark = LIGHTNING


def test_a_network_that_was_prepared_by_hand_has_no_baselines(tmp_path: Path) -> None:
    model = Classifier()
    trainer(tmp_path, MAKERS["qat"](tmp_path)).fit(model, datamodule=Data())
    with pytest.raises(ValueError, match="PTQBaselines needs the float network, but it was prepared before"):
        trainer(tmp_path, MAKERS["qat"](tmp_path), PTQBaselines()).fit(model, datamodule=Data())


def test_the_float_network_of_another_fit_is_not_taken_for_that_of_a_prepared_one(tmp_path: Path) -> None:
    made, other = MAKERS["qat"](tmp_path), Classifier()
    trainer(tmp_path, made, max_steps=1).fit(Classifier(), datamodule=Data())
    other.net = prepare(other.net, "w4a4")
    with pytest.raises(ValueError, match="PTQBaselines needs the float network, but it was prepared before"):
        trainer(tmp_path, made, PTQBaselines(), max_steps=1).fit(other, datamodule=Data())


def test_observers_have_names_for_people() -> None:
    assert observer_label("MinMax") == "min-max"
    assert observer_label({"_target_": "qat.observers.MSE"}) == "MSE"
    assert list(PTQBaselines({"mine": [Calibrate("MSE")]}).ladder) == ["mine"]
    with pytest.raises(ValueError, match="'Foo' is not an observer: write one of"):
        PTQBaselines(["Foo"])
    with pytest.raises(ValueError, match="PTQBaselines has nothing to compare with"):
        PTQBaselines([])


def test_a_row_has_no_name_of_another() -> None:
    for name in ("QAT", "qat integer", "float", " "):
        with pytest.raises(ValueError, match=f"the name '{name}' of a row of PTQ is that of another row"):
            PTQBaselines({name: [Calibrate()]})
    with pytest.raises(ValueError, match="outside 'a' is a row of ladder, too"):
        PTQBaselines({"a": [Calibrate()]}, outside={"a": QuantizeStatic()})
    with pytest.raises(ValueError, match="outside 'b' is '/home': write for example"):
        PTQBaselines(outside={"b": "/home"})  # type: ignore[dict-item]
    assert [*PTQBaselines({"Quantile": [Calibrate()], "floats": [Calibrate()]}).ladder] == ["Quantile", "floats"]


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


@pytest.mark.slow
def test_an_outside_baseline_is_a_row_that_counts_in_no_verdict(tmp_path: Path) -> None:
    name = "quantized"
    ptq = PTQBaselines(["MinMax"], outside={name: QuantizeStatic()})
    callbacks = [
        MAKERS["qat"](tmp_path),
        ptq,
        export := ExportONNX(tmp_path / "model.onnx"),
        MAKERS["report"](tmp_path),
    ]
    trainer(tmp_path, *callbacks).fit(Classifier(), datamodule=Data())
    assert export.artefact is not None
    assert export.artefact.latency_ms.keys() == {ONNX_RUNTIME, name}
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
