"""The target ONNX: QDQ files, and ONNX Runtime, which runs them."""

from qat.export.onnx.export import export_onnx, export_portable, export_tensorrt
from qat.export.onnx.float_network import export_float_onnx
from qat.export.onnx.quantize_static import QuantizeStatic
from qat.export.onnx.runtime import OnnxRuntimeNetwork, latency, operators
from qat.export.onnx.verify import verify_onnx

__all__ = [
    "OnnxRuntimeNetwork",
    "QuantizeStatic",
    "export_float_onnx",
    "export_onnx",
    "export_portable",
    "export_tensorrt",
    "latency",
    "operators",
    "verify_onnx",
]
