"""Lightning callbacks for any LightningModule, public as `qat.callbacks`."""

from qat.training.callbacks.export_onnx import ExportONNX
from qat.training.callbacks.freeze import Freeze
from qat.training.callbacks.oscillation_control import OscillationControl
from qat.training.callbacks.progressive_bits import ProgressiveBits
from qat.training.callbacks.pruning import Pruning
from qat.training.callbacks.ptq_baselines import PTQBaselines
from qat.training.callbacks.quantization_aware_training import QuantizationAwareTraining
from qat.training.callbacks.report import Report

__all__ = [
    "ExportONNX",
    "Freeze",
    "OscillationControl",
    "PTQBaselines",
    "ProgressiveBits",
    "Pruning",
    "QuantizationAwareTraining",
    "Report",
]
