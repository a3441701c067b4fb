"""Does this processor need ONNX Runtime's exact sums for a file? They cost half of its speed where it does not."""

from __future__ import annotations

import functools
import platform
import re
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

EXACT = ("session.x64quantprecision", "1")
"""Session option. Without it, on x86 without VNNI the runtime adds uint8 x int8 products in pairs, in 16 bits that saturate."""
LARGEST = (2**15 - 1) // (2 * 255)
"""Two products of codes up to 255 with weights up to this fit 16 bits."""


def needs_exact_sums(model: onnx.ModelProto) -> bool:
    """Whether sums of a file's 8-bit weights could saturate on this processor.

    A weight counts by its size alone, wherever its zeros lie, so that the answer may be yes for a file that never saturates.
    """
    return not adds_in_32_bits() and any(map(_is_wide, model.graph.initializer))


@functools.cache
def adds_in_32_bits() -> bool:
    """Whether this processor adds products of bytes exactly: one with VNNI, and any that is not x86. Unknown counts as no."""
    if platform.machine().lower() not in ("x86_64", "amd64", "x86", "i386", "i686"):
        return True
    try:
        features = Path("/proc/cpuinfo").read_text()
    except OSError:
        return False
    return re.search(r"\b(avx512_vnni|avx_vnni)\b", features) is not None


def _is_wide(tensor: onnx.TensorProto) -> bool:
    if tensor.data_type not in (TensorProto.INT8, TensorProto.UINT8):
        return False
    values = numpy_helper.to_array(tensor).astype(np.int16)
    return values.size > 1 and int(np.abs(values).max()) > LARGEST
