"""Does OpenVINO compute of an ONNX file what the integer model does?"""

from __future__ import annotations

from functools import partial

from qat.export.onnx.engine import Engine
from qat.export.onnx.saturation import needs_exact_sums
from qat.export.onnx.verify import verify_onnx
from qat.export.openvino.runtime import OpenVinoSession, operators

TIES = 0.001
"""Share of a site's codes that may differ by one step: OpenVINO requantizes sums with other float operations."""
TIES_OF_REQUANTIZED = 0.05
"""The same for codes of another site on another grid, see `Engine`."""
OPENVINO = Engine(
    "OpenVINO", "openvino", OpenVinoSession, operators, TIES, TIES_OF_REQUANTIZED, saturates=needs_exact_sums
)
verify_openvino = partial(verify_onnx, engine=OPENVINO)
"""`qat.verify` for an ONNX file in OpenVINO, on the CPU: that of ONNX Runtime with a tolerance."""
