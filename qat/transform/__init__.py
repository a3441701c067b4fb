"""Where quantization goes: policy, capture, prepare, calibrate, mode, inspect."""

from qat.transform.bits import FLOAT, bits_in_force, set_bits
from qat.transform.calibrate import calibrate
from qat.transform.inspect import Inspection, inspect
from qat.transform.mode import mode, quantizers
from qat.transform.policy import Policy
from qat.transform.prepare import is_prepared, prepare, prepare_
from qat.transform.presets import load_policy
from qat.transform.rule import Rule
from qat.transform.tensor_rule import TensorRule

__all__ = [
    "FLOAT",
    "Inspection",
    "Policy",
    "Rule",
    "TensorRule",
    "bits_in_force",
    "calibrate",
    "inspect",
    "is_prepared",
    "load_policy",
    "mode",
    "prepare",
    "prepare_",
    "quantizers",
    "set_bits",
]
