"""Lightning callbacks for anybody's LightningModule: `qat.callbacks`."""

from qat.training.callbacks.quantization_aware_training import QuantizationAwareTraining

__all__ = ["QuantizationAwareTraining"]
