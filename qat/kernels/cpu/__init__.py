"""The CPU backend: C, compiled once on this machine, with one pass over memory each way."""

import torch

from qat.kernels.cpu.library import Kernels, load_kernels

__all__ = ["Kernels", "available", "load_kernels"]


@torch.compiler.assume_constant_result
def available() -> bool:
    """Whether the compiled kernels can be used in this process."""
    return load_kernels() is not None
