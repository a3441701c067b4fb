"""Files for deployment: one folder per target, each of which can be written, run and verified."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from qat.export.targets import RUNTIMES, TARGETS, Runtime, Target

if TYPE_CHECKING:
    from qat.export.onnx import (
        OnnxRuntimeNetwork,
        QuantizeStatic,
        export_float_onnx,
        export_onnx,
        latency,
        operators,
    )
    from qat.export.verification import Verification, VerificationError
    from qat.export.verify_file import verify

__all__ = [
    "RUNTIMES",
    "TARGETS",
    "OnnxRuntimeNetwork",
    "QuantizeStatic",
    "Runtime",
    "Target",
    "Verification",
    "VerificationError",
    "export_float_onnx",
    "export_onnx",
    "latency",
    "operators",
    "verify",
]

_OF_ONNX = {"OnnxRuntimeNetwork", "QuantizeStatic", "export_float_onnx", "export_onnx", "latency", "operators"}


def __getattr__(name: str) -> Any:
    """Import a name when it is first used: the table of targets, which `qat quantize --help` reads, does not wait for torch."""
    if name not in __all__:
        raise AttributeError(f"module 'qat.export' has no attribute {name!r}")
    home = "onnx" if name in _OF_ONNX else "verify_file" if name == "verify" else "verification"
    found = getattr(importlib.import_module(f"qat.export.{home}"), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
