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
LARGEST_SUM = 2**15 - 1
HIGHEST_CODE = 255
PRODUCTS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
MOVES = ("Flatten", "Identity", "MaxPool", "Pad", "Reshape", "Slice", "Squeeze", "Transpose", "Unsqueeze")
"""What a bound on codes passes through."""


def needs_exact_sums(model: onnx.ModelProto) -> bool:
    """Whether sums of a file's 8-bit weights could saturate on this processor."""
    return not adds_in_32_bits() and could_saturate(model)


def could_saturate(model: onnx.ModelProto) -> bool:
    """Whether two neighbouring products of a file's 8-bit weights could leave 16 bits.

    They fit if the largest weight is small enough for the largest code that it is multiplied with: 64 for codes up to 255. Only
    the magnitude of the largest weight counts, so that the answer may be yes for a file that never saturates. It is also yes if
    a weight is read in a way that is not known here.
    """
    return _Sums(model.graph).could_saturate()


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


class _Sums:
    """A graph, with the node that makes each of its tensors and the nodes that read it."""

    def __init__(self, graph: onnx.GraphProto) -> None:
        self.constants = {tensor.name: tensor for tensor in graph.initializer}
        self.maker = {name: node for node in graph.node for name in node.output}
        self.readers: dict[str, list[onnx.NodeProto]] = {}
        for node in graph.node:
            for name in node.input:
                self.readers.setdefault(name, []).append(node)

    def could_saturate(self) -> bool:
        """Whether two products of any weight could leave 16 bits."""
        sizes = {name: _largest(tensor) for name, tensor in self.constants.items()}
        return any(
            2 * HIGHEST_CODE * size > LARGEST_SUM and self._is_multiplied(name, size) for name, size in sizes.items()
        )

    def _is_multiplied(self, weight: str, size: int) -> bool:
        readers = self.readers.get(weight, [])
        return not readers or any(self._saturates(reader, weight, size) for reader in readers)

    def _saturates(self, reader: onnx.NodeProto, weight: str, size: int) -> bool:
        if reader.op_type == "Gather" and reader.input[0] == weight:  # a table: what it returns are codes, not weights
            return False
        if reader.op_type == "Cast":  # to float
            return next(a.i for a in reader.attribute if a.name == "to") != TensorProto.FLOAT
        if reader.op_type != "DequantizeLinear":
            return True
        products = self.readers.get(reader.output[0], [])
        if not products or any(node.op_type not in PRODUCTS for node in products):
            return True
        highest = max(self._highest_code(x) for node in products for x in node.input[:2] if x != reader.output[0])
        return 2 * highest * size > LARGEST_SUM

    def _highest_code(self, real: str) -> int:
        """The bound of the codes behind a dequantized tensor."""
        maker = self.maker.get(real)
        if maker is None or maker.op_type != "DequantizeLinear":
            return HIGHEST_CODE
        codes = maker.input[0]
        while (mover := self.maker.get(codes)) is not None and mover.op_type in MOVES:
            codes = mover.input[0]
        maker = self.maker.get(codes)
        bound = {"Clip": 2, "Gather": 0}.get("" if maker is None else maker.op_type)  # of the codes; the table of them
        if maker is None or bound is None or len(maker.input) <= bound or maker.input[bound] not in self.constants:
            return HIGHEST_CODE
        return int(numpy_helper.to_array(self.constants[maker.input[bound]]).max())


def _largest(tensor: onnx.TensorProto) -> int:
    """The largest magnitude of stored bytes; 0 for other types and for numbers that are not tensors."""
    if tensor.data_type not in (TensorProto.INT8, TensorProto.UINT8):
        return 0
    values = numpy_helper.to_array(tensor).astype(np.int16)
    return int(np.abs(values).max()) if values.size > 1 else 0
