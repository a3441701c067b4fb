"""Fits with the callbacks of the comparison."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L

from qat.training.callbacks import ExportONNX, PTQBaselines, QuantizationAwareTraining, Report
from tests.training.user_modules import Data, trainer

MAKERS: dict[str, Callable[[Path], L.Callback]] = {
    "qat": lambda path: QuantizationAwareTraining("w4a4", quantizer_lr_ratio=0.01, calibration_images=64),
    "ptq": lambda path: PTQBaselines(),
    "export": lambda path: ExportONNX(path / "model.onnx"),
    "report": lambda path: Report(path),
}
ROW_NAMES = [
    "float", "PTQ min-max", "PTQ MSE", "QAT step 0", "QAT fake-quant", "QAT integer", "QAT in ONNX Runtime",
]  # fmt: skip


def fit(model: L.LightningModule, path: Path, order: tuple[str, ...] = tuple(MAKERS), **options: Any) -> L.Trainer:
    fitting = trainer(path, *(MAKERS[name](path) for name in order), epochs=2, **options)
    fitting.fit(model, datamodule=Data())
    return fitting


def callback_of(fitting: Any, kind: type[Any]) -> Any:
    return next(callback for callback in fitting.callbacks if isinstance(callback, kind))
