"""`qat.callbacks.*`: Lightning callbacks for any LightningModule."""

from qat.training.callbacks import ExportONNX, OscillationControl, PTQBaselines, QuantizationAwareTraining, Report

__all__ = ["ExportONNX", "OscillationControl", "PTQBaselines", "QuantizationAwareTraining", "Report"]
