"""The GPU backend: Triton, which comes with torch's CUDA builds, with one pass over memory each way."""

from __future__ import annotations

import functools
import importlib.util
import os
import warnings

import torch

from qat.kernels.operators import Operators
from qat.torch_private import constant_for_compiler

__all__ = ["available", "operators"]


@constant_for_compiler
def available() -> bool:
    """Whether Triton's kernels can be used on CUDA tensors in this process."""
    return _works()


@functools.cache
def _works() -> bool:
    """Whether a trial of the kernels succeeds; it runs once.

    They are not tried with QAT_NATIVE=0, without CUDA or on ROCm. Without Triton, or if the trial fails, one warning says why,
    and torch's own operations compute instead.
    """
    if os.environ.get("QAT_NATIVE") == "0" or not torch.cuda.is_available() or torch.version.hip:
        return False
    if importlib.util.find_spec("triton") is None:
        warnings.warn(
            "Triton is not installed: torch's own operations fake-quantize on the GPU, more slowly.", stacklevel=2
        )
        return False
    try:
        _trial()
    except Exception as error:  # whatever a compiler or a driver may raise
        reason = " ".join(str(error).split())[:300]
        warnings.warn(
            f"Triton's kernels are not used, torch's own operations compute instead, more slowly: {reason}",
            stacklevel=2,
        )
        return False
    return True


def operators() -> Operators:
    """The backend's functions on tensors; only if Triton is installed."""
    from qat.kernels.triton.functions import OPERATORS

    return OPERATORS


def _trial() -> None:
    x, scale = torch.tensor([-1.0, 0.3, 9.0], device="cuda"), torch.tensor(0.5, device="cuda")
    found = operators().fake_quantize(x, scale, -4.0, 3.0).tolist()
    if found != [-1.0, 0.5, 1.5]:
        raise RuntimeError(f"a trial gave {found}")
