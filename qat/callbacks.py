"""`qat.callbacks.*`: Lightning callbacks for any LightningModule."""

from qat.training.callbacks import (
    ExportONNX,
    Freeze,
    OscillationControl,
    ProgressiveBits,
    PTQBaselines,
    QuantizationAwareTraining,
    Report,
)

__all__ = [
    "ExportONNX",
    "Freeze",
    "OscillationControl",
    "PTQBaselines",
    "ProgressiveBits",
    "QuantizationAwareTraining",
    "Report",
]
