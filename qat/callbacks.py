"""`qat.callbacks.*`: Lightning callbacks for any LightningModule."""

from qat.training.callbacks import ExportONNX, Freeze, ProgressiveBits, PTQBaselines, QuantizationAwareTraining, Report

__all__ = ["ExportONNX", "Freeze", "PTQBaselines", "ProgressiveBits", "QuantizationAwareTraining", "Report"]
