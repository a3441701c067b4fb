"""Writing an ONNX graph: names, constants, packed integers, the file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

from qat.files import write_atomically

OPSET, IR = 21, 10
"""The oldest that have INT4."""
OPSET_INT2, IR_INT2 = 25, 12
"""The oldest that have INT2; used only by files with 2-bit weights."""


class NoOnnxFormError(ValueError):
    """An operation that nobody here can write."""

    def __init__(self, operation: Any, name: str) -> None:
        called = getattr(operation, "__name__", type(operation).__name__)
        super().__init__(
            f"{operation if isinstance(operation, str) else called} ({name}) stays in float and has no ONNX form: quantize the "
            "model without it, or run the result of qat.convert in torch."
        )


class GraphWriter:
    """Collects nodes and constants; equal small constants are stored once."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []
        self.has_int2 = False
        self._known: dict[Any, str] = {}

    def node(
        self, operation: str, inputs: list[str], output: str, further: Sequence[str] = (), **attributes: Any
    ) -> str:
        """Add one node; returns the name of its first output. further: the names of its others."""
        self.nodes.append(helper.make_node(operation, inputs, [output, *further], name=output, **attributes))
        return output

    def constant(self, value: NDArray[Any]) -> str:
        """The name of a constant with this value and dtype."""
        array = np.asarray(value)
        key = (array.dtype.str, array.shape, array.tobytes())
        if key not in self._known:
            self._known[key] = f"/c{len(self.constants)}"  # no name of a module or of an input
            self.constants.append(onnx.numpy_helper.from_array(array, self._known[key]))
        return self._known[key]

    def own_constant(self, value: NDArray[Any], name: str) -> str:
        """The name of a constant that nobody else gets."""
        self.constants.append(onnx.numpy_helper.from_array(value, name))
        return name

    def stored_weight(self, codes: NDArray[Any], name: str, to: int, times: int = 1) -> str:
        """`times` the int8 or uint8 weight codes as type `to`, stored in 2 or 4 bits each where they fit; widened and
        multiplied once, by the runtime.
        """
        lowest, highest = int(np.min(codes)), int(np.max(codes))
        sign = int(codes.dtype == np.int8)
        bits = next(b for b in (2, 4, 8) if -sign * 2 ** (b - 1) <= lowest and highest < 2 ** (b - sign))
        kind = f"{codes.dtype.name.removesuffix('8')}{bits}"
        form = getattr(TensorProto, kind.upper())
        stored = name if form == to and times == 1 else f"{name}_{kind}"
        self.has_int2 |= bits == 2
        packed = codes.tobytes() if bits == 8 else pack(codes, bits)
        self.constants.append(helper.make_tensor(stored, form, codes.shape, packed, raw=True))
        if times == 1:
            return stored if form == to else self.node("Cast", [stored], name, to=to)
        wide = self.node("Cast", [stored], f"{name}_int32", to=TensorProto.INT32)
        product = self.node("Mul", [wide, self.constant(np.array(times, dtype=np.int32))], f"{name}_times_{times}")
        return self.node("Cast", [product], name, to=to)

    def save(
        self,
        path: Path,
        inputs: list[onnx.ValueInfoProto],
        outputs: list[onnx.ValueInfoProto],
        metadata: dict[str, str],
    ) -> None:
        """Check the graph and write the file, whole or not at all."""
        graph = helper.make_graph(self.nodes, "qat", inputs, outputs, self.constants)
        opset, ir = (OPSET_INT2, IR_INT2) if self.has_int2 else (OPSET, IR)
        model = helper.make_model(
            graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=ir, producer_name="qat"
        )
        helper.set_model_props(model, metadata)
        onnx.checker.check_model(model)
        write_atomically(path, model.SerializeToString())


def pack(codes: NDArray[Any], bits: int) -> bytes:
    """Codes of 2 or 4 bits, two's complement where they have a sign, first code in the lowest bits of a byte: the layout of
    ONNX's small integers.

    >>> pack(np.array([1, -1, 7], dtype=np.int8), 4).hex()
    'f107'
    >>> pack(np.array([1, 0, -1, -2, 1], dtype=np.int8), 2).hex()
    'b101'
    """
    per_byte = 8 // bits
    flat = codes.reshape(-1).view(np.uint8) & (2**bits - 1)
    flat = np.pad(flat, (0, -len(flat) % per_byte)).reshape(-1, per_byte)
    shifts = np.arange(per_byte, dtype=np.uint8) * bits
    packed: NDArray[np.uint8] = np.sum(flat << shifts, axis=1, dtype=np.uint8)  # no two codes share a bit
    return packed.tobytes()
