"""Quantization-aware training: what you trained is what you deploy, bit for bit."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # from where they are defined: `qat.transform.prepare` is a module to mypy, too
    from qat import callbacks, ptq
    from qat.doctor.inspect import inspect
    from qat.export.onnx.export import export_onnx
    from qat.export.packed.bits import pack, unpack
    from qat.export.packed.load import load_quantized
    from qat.export.packed.save import save_quantized
    from qat.export.pt2e.build import to_pt2e
    from qat.export.verification import Verification
    from qat.export.verify_file import verify
    from qat.granularity import PerChannel, PerGroup, PerTensor
    from qat.grid import Grid
    from qat.integer.convert import convert
    from qat.quantizers import Mode
    from qat.spec import QParams, QuantSpec
    from qat.training.checkpoint.latest import latest_checkpoint
    from qat.transform.calibrate import calibrate
    from qat.transform.load_checkpoint import load_checkpoint
    from qat.transform.mode import mode
    from qat.transform.policy import Policy
    from qat.transform.prepare import prepare
    from qat.transform.presets import load_policy
    from qat.transform.rule import Rule
    from qat.transform.tensor_rule import TensorRule

__all__ = [
    "Grid",
    "Mode",
    "PerChannel",
    "PerGroup",
    "PerTensor",
    "Policy",
    "QParams",
    "QuantSpec",
    "Rule",
    "TensorRule",
    "Verification",
    "calibrate",
    "callbacks",
    "convert",
    "export_onnx",
    "inspect",
    "latest_checkpoint",
    "load_checkpoint",
    "load_policy",
    "load_quantized",
    "mode",
    "pack",
    "prepare",
    "ptq",
    "save_quantized",
    "to_pt2e",
    "unpack",
    "verify",
]

_HOME = {
    "Grid": "qat.grid",
    "Mode": "qat.quantizers",
    "PerChannel": "qat.granularity",
    "PerGroup": "qat.granularity",
    "PerTensor": "qat.granularity",
    "Policy": "qat.transform",
    "QParams": "qat.spec",
    "QuantSpec": "qat.spec",
    "Rule": "qat.transform",
    "TensorRule": "qat.transform",
    "Verification": "qat.export",
    "calibrate": "qat.transform",
    "convert": "qat.integer",
    "export_onnx": "qat.export",
    "inspect": "qat.doctor",
    "latest_checkpoint": "qat.training.checkpoint.latest",
    "load_checkpoint": "qat.transform.load_checkpoint",
    "load_policy": "qat.transform",
    "load_quantized": "qat.export.packed",
    "mode": "qat.transform",
    "pack": "qat.export.packed",
    "prepare": "qat.transform",
    "save_quantized": "qat.export.packed",
    "to_pt2e": "qat.export.pt2e",
    "unpack": "qat.export.packed",
    "verify": "qat.export",
}
"""Public name -> the module that it is imported from."""
_MODULES = {
    "callbacks",
    "data",
    "doctor",
    "estimators",
    "export",
    "functional",
    "granularity",
    "grid",
    "hf",
    "integer",
    "kernels",
    "models",
    "nn",
    "observers",
    "ptq",
    "quantizers",
    "report",
    "search",
    "sparsity",
    "spec",
    "transform",
}
"""Modules that `import qat` alone gives access to."""


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used: `qat --help` does not wait for torch, nor `import qat` for Lightning."""
    if name in _HOME:
        found = getattr(importlib.import_module(_HOME[name]), name)
    elif name in _MODULES:
        found = importlib.import_module(f"qat.{name}")
    else:
        raise AttributeError(f"module 'qat' has no attribute {name!r}")
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
