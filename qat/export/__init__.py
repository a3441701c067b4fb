"""Files for deployment: one folder per target, each of which can be written, run and verified."""

from qat.export.onnx import (
    OnnxRuntimeNetwork,
    QuantizeStatic,
    export_float_onnx,
    export_onnx,
    latency,
    operators,
    verify,
)
from qat.export.verification import Verification, VerificationError

__all__ = [
    "OnnxRuntimeNetwork",
    "QuantizeStatic",
    "Verification",
    "VerificationError",
    "export_float_onnx",
    "export_onnx",
    "latency",
    "operators",
    "verify",
]
