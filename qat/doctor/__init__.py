"""The doctor: what a policy does to a model before anything is trained, what it costs, and the line that mends it."""

from qat.doctor.diagnosis import Diagnosis, Finding
from qat.doctor.findings import find_quickly
from qat.doctor.inspect import inspect
from qat.doctor.sensitivity import Sensitivity

__all__ = ["Diagnosis", "Finding", "Sensitivity", "find_quickly", "inspect"]
