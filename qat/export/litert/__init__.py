"""The target LiteRT (TensorFlow Lite): `.tflite` files with int8 kernels."""

from qat.export.litert.program import export_litert
from qat.export.litert.runtime import LitertNetwork
from qat.export.litert.verify import verify_litert

__all__ = ["LitertNetwork", "export_litert", "verify_litert"]
