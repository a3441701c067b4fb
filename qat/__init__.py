"""Quantization-aware training: what you trained is what you deploy, bit for bit."""

import importlib
from typing import Any

from qat.export import Verification, export_onnx, verify
from qat.granularity import PerChannel, PerGroup, PerTensor
from qat.grid import Grid
from qat.integer import convert
from qat.quantizers import Mode
from qat.spec import QParams, QuantSpec
from qat.transform import Policy, Rule, TensorRule, calibrate, inspect, load_policy, mode, prepare

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
    "convert",
    "export_onnx",
    "inspect",
    "load_policy",
    "mode",
    "prepare",
    "verify",
]


def __getattr__(name: str) -> Any:
    """What belongs to training is imported when it is first asked for: `qat.callbacks` needs Lightning."""
    if name == "callbacks":
        return importlib.import_module("qat.callbacks")
    if name == "load_checkpoint":
        return importlib.import_module("qat.transform.load_checkpoint").load_checkpoint
    if name == "latest_checkpoint":
        return importlib.import_module("qat.training.checkpoint.latest").latest_checkpoint
    raise AttributeError(f"module 'qat' has no attribute {name!r}")
