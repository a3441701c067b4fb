"""The target OpenVINO: plain QDQ files, run by its CPU plugin."""

from qat.export.openvino.runtime import OpenVinoNetwork
from qat.export.openvino.verify import verify_openvino

__all__ = ["OpenVinoNetwork", "verify_openvino"]
