"""`qat.callbacks.*`: Lightning callbacks for any LightningModule."""

from qat.training.callbacks import ExportONNX, PTQBaselines, QuantizationAwareTraining, Report

__all__ = ["ExportONNX", "PTQBaselines", "QuantizationAwareTraining", "Report"]
