"""Does OpenVINO compute of an ONNX file what the integer model does?"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from torch import nn

from qat.export.onnx.engine import Engine
from qat.export.onnx.verify import verify_onnx
from qat.export.openvino.runtime import OpenVinoSession, operators
from qat.export.verification import Verification

TIES = 0.05
"""Share of a site's codes that may differ by one step: OpenVINO requantizes with other float operations. A channel that is
constant lies on one side of a rounding edge with all its codes, so a site of few channels may differ in more than its ties."""
OPENVINO = Engine("OpenVINO", "openvino", OpenVinoSession, operators, TIES)


def verify_openvino(
    path: str | Path,
    integer: nn.Module,
    batches: Iterable[Any],
    prepared: nn.Module | None = None,
    record: bool = False,
) -> Verification:
    """`qat.verify` for an ONNX file in OpenVINO, on the CPU.

    Raises:
        ValueError: as `verify_onnx`.
        ImportError: OpenVINO is not installed.
    """
    return verify_onnx(path, integer, batches, prepared, record, OPENVINO)
