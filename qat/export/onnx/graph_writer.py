"""Writing an ONNX graph: names, constants, packed integers, the file."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

from qat.export.onnx.tensor_names import TensorNames

OPSET, IR = 21, 10
"""The oldest versions with INT4."""
OPSET_INT2, IR_INT2 = 25, 12
"""The oldest versions with INT2; only files with 2-bit weights use them."""


class NoOnnxFormError(ValueError):
    """There is no writer for an operation."""

    def __init__(self, operation: Any, name: str) -> None:
        operation_name = getattr(operation, "__name__", type(operation).__name__)
        super().__init__(
            f"{operation if isinstance(operation, str) else operation_name} ({name}) stays in float and has no ONNX form: "
            "quantize the model without it, or run the result of qat.convert in torch."
        )


class NoComplexFormError(ValueError):
    """torch.onnx cannot write an operation on complex numbers, and no runtime takes them from one operation to the next."""

    def __init__(self, operation: str, name: str) -> None:
        super().__init__(
            f"{operation or 'an operation'} of complex numbers ({name}) has no ONNX form: compute it with their real and "
            "imaginary parts, or run the result of qat.convert in torch."
        )


class GraphWriter:
    """Collects nodes and constants; equal constants are stored once. No two tensors get the same name.

    Args:
        names: hands out the names.
        packs_weights: whether weight codes are stored in as few bits as they need, and widened when the file is loaded.
    """

    def __init__(self, names: TensorNames | None = None, packs_weights: bool = True) -> None:
        self.packs_weights = packs_weights
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []
        self.has_int2 = False
        self.tensor_names = names or TensorNames()
        self.owned: dict[str, str] = {}
        """Of the tensor that is written next: the name that will be asked for -> the name that was reserved for it."""
        self._constant_names: dict[Any, str] = {}

    def node(
        self, operation: str, inputs: list[str], output: str, more_outputs: Sequence[str] = (), **attributes: Any
    ) -> str:
        """Add one node, named after its first output; return that name, which has underscores behind it if it was taken."""
        outputs = [self.unique(name) for name in (output, *more_outputs)]
        self.nodes.append(helper.make_node(operation, inputs, outputs, name=outputs[0], **attributes))
        return outputs[0]

    def unique(self, wanted: str) -> str:
        """A name for a new tensor: the one that was reserved for it, or one that nothing else has."""
        return self.owned.pop(wanted) if wanted in self.owned else self.tensor_names.new(wanted)

    def copy(self, node: onnx.NodeProto, names: Mapping[str, str]) -> None:
        """Add a node of another graph. names: name of a tensor there -> its name here."""
        copy = helper.make_node(node.op_type, [names[i] for i in node.input], [names[o] for o in node.output])
        copy.attribute.extend(node.attribute)
        copy.name = next(filter(None, copy.output))
        self.nodes.append(copy)

    @contextmanager
    def attempt(self) -> Iterator[None]:
        """If the `with` block raises `NoOnnxFormError`, all that it wrote is taken back."""
        nodes, constants = len(self.nodes), len(self.constants)
        try:
            yield
        except NoOnnxFormError:
            self._take_back(nodes, constants)
            raise

    def _take_back(self, nodes: int, constants: int) -> None:
        gone = {*(o for n in self.nodes[nodes:] for o in n.output), *(c.name for c in self.constants[constants:])}
        self.tensor_names.release(gone)
        del self.nodes[nodes:], self.constants[constants:]
        self._constant_names = {key: name for key, name in self._constant_names.items() if name not in gone}

    def constant(self, value: NDArray[Any]) -> str:
        """The name of a constant with this value and dtype."""
        array = np.asarray(value)
        key = (array.dtype.str, array.shape, array.tobytes())
        if key not in self._constant_names:
            self._constant_names[key] = self.unique(f"/c{len(self.constants)}")  # no name of a module or of an input
            self.constants.append(onnx.numpy_helper.from_array(array, self._constant_names[key]))
        return self._constant_names[key]

    def unshared_constant(self, value: NDArray[Any], name: str) -> str:
        """Store a constant under this name, even if an equal one exists."""
        tensor = onnx.numpy_helper.from_array(value, self.unique(name))
        self.constants.append(tensor)
        return str(tensor.name)

    def stored_weight(self, codes: NDArray[Any], name: str, to: int, times: int = 1) -> str:
        """Store weight codes in 2, 4 or 8 bits each, as few as they need; the runtime widens them once, when it loads.

        Without `packs_weights` they are stored as they would be after that, in 8 bits.

        Args:
            codes: int8 or uint8.
            name: name of the tensor that results.
            to: its ONNX type.
            times: factor by which the runtime multiplies the codes.

        Returns:
            The name of the tensor with `times * codes`.
        """
        if not self.packs_weights:
            codes, times = np.multiply(codes, times, dtype=codes.dtype), 1
        lowest, highest = int(np.min(codes)), int(np.max(codes))
        sign = int(codes.dtype == np.int8)
        widths = (2, 4, 8) if self.packs_weights else (8,)
        bits = next(b for b in widths if -sign * 2 ** (b - 1) <= lowest and highest < 2 ** (b - sign))
        type_name = f"{codes.dtype.name.removesuffix('8')}{bits}"
        stored_type = getattr(TensorProto, type_name.upper())
        stored = self.unique(name if stored_type == to and times == 1 else f"{name}_{type_name}")
        self.has_int2 |= bits == 2
        packed = codes.tobytes() if bits == 8 else pack(codes, bits)
        self.constants.append(helper.make_tensor(stored, stored_type, codes.shape, packed, raw=True))
        if times == 1:
            return stored if stored_type == to else self.node("Cast", [stored], name, to=to)
        wide = self.node("Cast", [stored], f"{name}_int32", to=TensorProto.INT32)
        product = self.node("Mul", [wide, self.constant(np.array(times, dtype=np.int32))], f"{name}_times_{times}")
        return self.node("Cast", [product], name, to=to)

    def model(
        self,
        inputs: list[onnx.ValueInfoProto],
        outputs: list[onnx.ValueInfoProto],
    ) -> onnx.ModelProto:
        """The whole file, checked."""
        graph = helper.make_graph(in_order(self.nodes), "qat", inputs, outputs, self.constants)
        opset, ir = (OPSET_INT2, IR_INT2) if self.has_int2 else (OPSET, IR)
        model = helper.make_model(
            graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=ir, producer_name="qat"
        )
        onnx.checker.check_model(model)
        return model


def in_order(nodes: Sequence[onnx.NodeProto]) -> list[onnx.NodeProto]:
    """The nodes in an order in which each comes after those that it reads; as they are, if that is one."""
    producers = {output: i for i, node in enumerate(nodes) for output in node.output}
    ordered: list[onnx.NodeProto] = []
    done: set[int] = set()
    for first in range(len(nodes)):
        waiting = [first]
        while waiting:
            index = waiting[-1]
            before = [producers[i] for i in nodes[index].input if i in producers and producers[i] not in done]
            if before and index not in done:
                waiting += before
                continue
            if index not in done:
                done.add(index)
                ordered.append(nodes[index])
            waiting.pop()
    return ordered


def pack(codes: NDArray[Any], bits: int) -> bytes:
    """Pack codes of 2 or 4 bits as ONNX stores them: two's complement, the first code in the lowest bits of a byte.

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
