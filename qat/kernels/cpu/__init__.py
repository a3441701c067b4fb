"""The CPU backend: C, compiled once on this machine, with one pass over memory each way."""

from qat.kernels.cpu.library import Kernels, load_kernels
from qat.kernels.operators import Operators
from qat.torch_private import constant_for_compiler

__all__ = ["Kernels", "available", "load_kernels", "operators"]


@constant_for_compiler
def available() -> bool:
    """Whether the compiled kernels can be used in this process."""
    return load_kernels() is not None


def operators() -> Operators:
    """The backend's functions on tensors; only if `available()`."""
    from qat.kernels.cpu.functions import OPERATORS

    return OPERATORS
