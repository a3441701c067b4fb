"""Where quantization goes: policy, capture, prepare, calibrate, mode, inspect."""

from qat.transform.calibrate import calibrate
from qat.transform.inspect import Inspection, inspect
from qat.transform.mode import mode, quantizers
from qat.transform.policy import Policy, Rule, TensorRule, load_policy
from qat.transform.prepare import is_prepared, prepare, prepare_

__all__ = [
    "Inspection",
    "Policy",
    "Rule",
    "TensorRule",
    "calibrate",
    "inspect",
    "is_prepared",
    "load_policy",
    "mode",
    "prepare",
    "prepare_",
    "quantizers",
]
