"""The CPU backend: C, compiled once on this machine, with one pass over memory each way."""

import torch

from qat.kernels.cpu.library import Kernels, kernels

__all__ = ["Kernels", "available", "kernels"]


@torch.compiler.assume_constant_result
def available() -> bool:
    """Whether the compiled kernels can be used in this process."""
    return kernels() is not None
