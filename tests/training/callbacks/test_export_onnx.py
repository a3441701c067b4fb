"""Which network is exported, and for whom."""

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, nn

import qat
from qat.export import QuantizeStatic
from qat.training.callbacks import ExportONNX, PTQBaselines, QuantizationAwareTraining, Report
from tests.training.callbacks.comparison_fits import MAKERS, callback_of
from tests.training.user_modules import LIGHTNING, Classifier, Data, Net, trainer

pytestmark = LIGHTNING


@pytest.mark.parametrize("others", [{}, {"every_n_epochs": 1}, {"monitor": "step", "mode": "max"}])
def test_the_best_checkpoint_is_what_is_exported(others: dict[str, Any], tmp_path: Path) -> None:
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
    newest = [ModelCheckpoint(tmp_path / "newest", **others)] if others else []
    callbacks = [*(make(tmp_path) for make in MAKERS.values()), *newest, checkpoint]
    fitting = trainer(tmp_path, *callbacks, epochs=2, enable_checkpointing=True)
    fitting.fit(model, datamodule=Data())
    results = callback_of(fitting, Report).results
    assert results.training.best_epoch == 1
    exported = callback_of(fitting, ExportONNX).artefact.network()
    assert len(exported(Data().test.tensors[0]).argmax(1).unique()) > 1


def test_arguments_that_are_no_tensors_and_nested_ones_are_written_and_timed(tmp_path: Path) -> None:
    class Optional(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = Net()

        def forward(self, pair: tuple[Tensor, Tensor], factor: float | None = None) -> Tensor:
            return self.net(pair[0] + pair[1]) if factor is None else self.net(pair[0]) * factor

    class Module(Classifier):
        def __init__(self) -> None:
            super().__init__(lr=1e-4)
            self.net = Optional()

        def forward(self, x: Tensor) -> Tensor:
            return self.net((x, x), None)

    callbacks = [
        QuantizationAwareTraining("w8a8", inputs=lambda batch: ((batch[0], batch[0]), None)),
        MAKERS["export"](tmp_path),
    ]
    trainer(tmp_path, *callbacks, max_steps=1).fit(Module(), datamodule=Data())
    artefact = callbacks[1].artefact
    assert artefact is not None
    assert artefact.verification.passed
    assert artefact.latency_ms


def test_without_a_best_checkpoint_the_last_weights_are_exported(tmp_path: Path) -> None:
    callbacks = [MAKERS["qat"](tmp_path), ModelCheckpoint(tmp_path, every_n_epochs=2), MAKERS["export"](tmp_path)]
    fitting, module = trainer(tmp_path, *callbacks, epochs=3, enable_checkpointing=True), Classifier()
    fitting.fit(module, datamodule=Data())
    artefact = callback_of(fitting, ExportONNX).artefact
    x = Data().test.tensors[0]
    assert torch.equal(artefact.integer(x), qat.convert(module.net)(x))


def test_each_target_gets_a_verified_file_and_a_row(tmp_path: Path) -> None:
    callbacks = [MAKERS["qat"](tmp_path), ExportONNX(tmp_path / "m.onnx", targets=["portable"]), Report(tmp_path)]
    fitting = trainer(tmp_path, *callbacks, epochs=1)
    fitting.fit(Classifier(), datamodule=Data())
    results = callback_of(fitting, Report).results
    assert qat.verify(tmp_path / "m_portable.onnx").passed
    (of_target,) = results.target_verifications
    assert (of_target.file, of_target.code_mismatches) == ("m_portable.onnx", 0)
    default, portable = results.rows[-2:]
    assert (portable.name, portable.kind, portable.top1) == ("QAT for portable", "qat_target", default.top1)
    assert portable.size_bytes == (tmp_path / "m_portable.onnx").stat().st_size != default.size_bytes
    assert "m_portable.onnx" in (tmp_path / "report.md").read_text()


def test_a_target_whose_grids_are_not_trained_is_refused_when_the_fit_begins(tmp_path: Path) -> None:
    unsigned, export = QuantizationAwareTraining("w8a8"), ExportONNX(tmp_path / "m.onnx", targets={"tensorrt": None})
    with pytest.raises(ValueError, match=r"write policy\.target=tensorrt"):
        trainer(tmp_path, unsigned, export, epochs=1).fit(Classifier(), datamodule=Data())


def test_a_target_whose_runtime_is_missing_is_refused_when_the_fit_begins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    export = ExportONNX(tmp_path / "m.onnx", targets=["openvino"])
    with pytest.raises(ImportError, match=r"openvino is not installed, .* pip install 'qat-lightning\[openvino\]'"):
        export.check_policy(qat.load_policy("w8a8"))


def test_an_unknown_target_is_named() -> None:
    with pytest.raises(ValueError, match="did you mean portable"):
        ExportONNX(targets=["portabel"])
    assert [target.name for target in ExportONNX(targets="portable").targets] == ["portable"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"float_path": "m.onnx"}, r"path and float_path both write m\.onnx: give one of them another name"),
        ({"targets": {"portable": "m.onnx"}}, r"path and targets\.portable both write m\.onnx"),
        ({"targets": {"portable": "m.unverified.onnx"}}, r"path and targets\.portable both write m\.unverified\.onnx"),
        ({"targets": {"portable": "a.onnx", "openvino": "a.onnx"}}, r"targets\.portable and targets\.openvino both"),
        ({"targets": {"portable": "m.txt"}}, r"m\.txt is not the name of a file for portable: write m\.onnx"),
        ({"targets": {"onnxruntime": "other.onnx"}}, r"'other\.onnx' for onnxruntime, whose file is path: write path="),
    ],
)
def test_no_file_is_written_over_another_one(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        ExportONNX("m.onnx", **options)


def test_the_file_of_an_outside_baseline_is_another_one(tmp_path: Path) -> None:
    export = ExportONNX(tmp_path / "m.onnx")
    baselines = PTQBaselines(outside={"ONNX Runtime": QuantizeStatic(file="m.onnx")})
    with pytest.raises(ValueError, match=r"path and ptq\.outside\.ONNX Runtime both write m\.onnx"):
        trainer(tmp_path, QuantizationAwareTraining("w8a8"), baselines, export).fit(Classifier(), datamodule=Data())
    with pytest.raises(ValueError, match=r"two rows of outside write quantize_static\.onnx"):
        PTQBaselines(outside={"a": QuantizeStatic(), "b": QuantizeStatic("Entropy")})
