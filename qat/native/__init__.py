"""Fake quantization in one pass over memory each way: C, compiled once on this machine. Without a compiler torch does it."""

from qat.native.kernels import Kernels, kernels

__all__ = ["Kernels", "kernels"]
