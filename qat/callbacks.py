"""`qat.callbacks.*`: Lightning callbacks for any LightningModule."""

from qat.training.callbacks import ExportONNX, Freeze, PTQBaselines, QuantizationAwareTraining, Report

__all__ = ["ExportONNX", "Freeze", "PTQBaselines", "QuantizationAwareTraining", "Report"]
