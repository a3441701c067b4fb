"""One file per target; each target can be written and run. The only floor that knows ONNX."""

from qat.export.onnx.export import export_onnx
from qat.export.onnx.float_network import export_float_onnx
from qat.export.quantize_static import QuantizeStatic
from qat.export.runtime import OnnxRuntimeNetwork, latency, operators
from qat.export.verify import Verification, verify

__all__ = [
    "OnnxRuntimeNetwork",
    "QuantizeStatic",
    "Verification",
    "export_float_onnx",
    "export_onnx",
    "latency",
    "operators",
    "verify",
]
