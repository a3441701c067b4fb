"""Fast forms of the formulas in `qat.functional`: autograd functions, and compiled kernels where they are available.

Each backend has a folder: `cpu/` is C, compiled once on this machine, `triton/` the same for GPUs. Otherwise torch's own
operations compute the same forward values.
"""

from qat.kernels.clip_and_round import ClipAndRound, Rounding
from qat.kernels.fake_quantize import fake_quantize
from qat.kernels.gradients import Floor, ScaleGradient, StraightThroughClamp
from qat.kernels.look_up import LookUp
from qat.kernels.saved_codes import byte_encoding, saving_as_codes

__all__ = [
    "ClipAndRound",
    "Floor",
    "LookUp",
    "Rounding",
    "ScaleGradient",
    "StraightThroughClamp",
    "byte_encoding",
    "fake_quantize",
    "saving_as_codes",
]
