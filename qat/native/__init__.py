"""Fake quantization in one pass over memory each way: C, compiled once on this machine. Without a compiler torch does it."""

import torch

from qat.native.compact import keeping_codes, mark
from qat.native.kernels import Kernels, kernels
from qat.native.operators import (
    DIRECT,
    REGISTERED,
    Operators,
    clip_and_snap,
    clip_and_snap_backward,
    look_up,
    look_up_backward,
)

__all__ = [
    "Kernels",
    "Operators",
    "available",
    "clip_and_snap",
    "clip_and_snap_backward",
    "keeping_codes",
    "kernels",
    "look_up",
    "look_up_backward",
    "mark",
    "native",
]


@torch.compiler.assume_constant_result
def available() -> bool:
    """Whether `native()` can be used here."""
    return kernels() is not None


def native() -> Operators:
    """What autograd calls: operators that torch.compile knows where it is compiling, else plain functions, which cost less."""
    return REGISTERED if torch.compiler.is_compiling() else DIRECT
