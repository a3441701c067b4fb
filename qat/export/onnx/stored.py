"""What a file stores against what the integer model holds: every constant, operation, attribute and connection, by value.

The integer model is written anew and the two graphs are compared from their outputs backwards. A tensor has a signature, the
hash of all that it is computed from, in which no internal name takes part: tensors of equal signatures are equal for any data.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from qat.export.verification import StoredDifference

SIZES_FROM_VALUES = ("OneHot", "Range", "Resize", "Upsample")
"""Operators that make shapes of numbers other than int64, the type of all other shapes; so does a Cast to int64."""


def stored_differences(expected: onnx.ModelProto, found: onnx.ModelProto) -> list[StoredDifference]:
    """All that differs, each named after the tensor in `expected` where it begins; names of inner tensors do not matter."""
    differences = list(_header(expected, found))
    ours, theirs = _Signatures(expected.graph), _Signatures(found.graph)
    pairs = [(a.name, b.name) for a, b in zip(expected.graph.output, found.graph.output, strict=False)]
    differences += _walk(ours, theirs, pairs)
    if not differences:  # what no output depends on
        for name in _additional(ours.of, theirs.of):
            differences.append(StoredDifference(name, 1, "is missing"))
        for name in _additional(theirs.of, ours.of):
            differences.append(StoredDifference(name, 1, "is not in the integer model"))
    return differences


def constants_in(model: onnx.ModelProto) -> int:
    """How many numbers the file stores."""
    return sum(int(np.prod(t.dims)) for t in model.graph.initializer)


class _Signatures:
    """The signatures of all tensors of a graph."""

    def __init__(self, graph: onnx.GraphProto) -> None:
        self.constants = {t.name: t for t in graph.initializer}
        self.producers = {name: node for node in graph.node for name in node.output if name}
        self.of = {"": b""}
        self.sizes_from_values = any(
            n.op_type in SIZES_FROM_VALUES
            or (n.op_type == "Cast" and any(a.i == onnx.TensorProto.INT64 for a in n.attribute))
            for n in graph.node
        )
        for value in graph.input:
            self.of[value.name] = _hash(b"input", _bytes(value))
        for tensor in graph.initializer:
            self.of[tensor.name] = _hash(b"constant", *_content(tensor))
        for node in graph.node:
            operation = _hash(*_operation(node), *(self.of.get(name, name.encode()) for name in node.input))
            for i, name in enumerate(node.output):
                if name:
                    self.of[name] = _hash(operation, str(i).encode())

    def inputs(self, node: onnx.NodeProto) -> list[bytes]:
        """The signatures of the inputs of a node."""
        return [self.of.get(name, name.encode()) for name in node.input]


def _header(expected: onnx.ModelProto, found: onnx.ModelProto) -> Iterable[StoredDifference]:
    """Differences in what surrounds the nodes."""
    for name in ("input", "output"):
        if [_bytes(v) for v in getattr(expected.graph, name)] != [_bytes(v) for v in getattr(found.graph, name)]:
            yield StoredDifference(f"{name}s", 1, "have other names, types or shapes")
    versions = [{(o.domain, o.version) for o in m.opset_import} for m in (expected, found)]
    if versions[0] != versions[1]:
        yield StoredDifference("opset", 1, f"is {sorted(versions[1])}, not {sorted(versions[0])}")
    if expected.ir_version != found.ir_version:
        yield StoredDifference("IR version", 1, f"is {found.ir_version}, not {expected.ir_version}")
    if found.functions or found.training_info or found.graph.sparse_initializer or found.graph.quantization_annotation:
        yield StoredDifference("graph", 1, "has functions, training information, sparse constants or annotations")
    if sorted(map(_bytes, expected.graph.value_info)) != sorted(map(_bytes, found.graph.value_info)):
        yield StoredDifference("inner tensors", 1, "have other names, types or shapes")
    twice = [t for t, n in Counter(t.name for t in found.graph.initializer).items() if n > 1]
    yield from (StoredDifference(name, 1, "is stored more than once") for name in twice)


def _walk(ours: _Signatures, theirs: _Signatures, pairs: list[tuple[str, str]]) -> list[StoredDifference]:
    """Go back from pairs of tensors that should be equal to where they begin to differ."""
    known = set(ours.of.values())
    differences: dict[str, StoredDifference] = {}
    stack, seen = pairs[::-1], set(pairs)
    while stack:
        a, b = stack.pop()
        if ours.of.get(a) == theirs.of.get(b):
            continue
        difference, further = _compare(ours, theirs, a, b, known)
        if difference:
            differences.setdefault(difference.name, difference)
        stack += [pair for pair in reversed(further) if pair not in seen]
        seen |= set(further)
    return list(differences.values())


def _compare(
    ours: _Signatures, theirs: _Signatures, a: str, b: str, known: set[bytes]
) -> tuple[StoredDifference | None, list[tuple[str, str]]]:
    """Where two tensors differ: here, or in the pairs of tensors that they are computed from."""
    if a in ours.constants and b in theirs.constants:
        return _compare_constants(ours.constants[a], theirs.constants[b], ours.sizes_from_values), []
    one, other = ours.producers.get(a), theirs.producers.get(b)
    if one is None or other is None:
        return StoredDifference(a, 1, f"is replaced by {b or 'nothing'}"), []
    if _operation(one)[0] != _operation(other)[0]:
        return StoredDifference(a, 1, f"is computed by {other.op_type}, not {one.op_type}"), []
    if len(one.input) != len(other.input) or list(one.output).index(a) != list(other.output).index(b):
        return StoredDifference(a, 1, f"is another result, or one of other inputs, of {one.op_type}"), []
    if _operation(one) != _operation(other):
        changed = sorted({x.name for x in (*one.attribute, *other.attribute)})
        return StoredDifference(a, 1, f"has another attribute ({', '.join(changed)}) of {one.op_type}"), []
    further = []
    for mine, its in zip(one.input, other.input, strict=True):
        if ours.of.get(mine) != theirs.of.get(its):
            if its not in theirs.constants and theirs.of.get(its, b"") in known:
                return StoredDifference(a, 1, f"reads {its or 'nothing'} in place of {mine or 'nothing'}"), []
            further.append((mine, its))
    return None, further


def _compare_constants(one: onnx.TensorProto, other: onnx.TensorProto, sizes_from_values: bool) -> StoredDifference:
    ours, theirs = _array(one), _array(other)
    if ours is None or theirs is None or ours.dtype != theirs.dtype or ours.shape != theirs.shape:
        return StoredDifference(one.name, max(1, int(np.prod(one.dims))), "is stored in another type or shape")
    elements = _elements_that_differ(ours, theirs)
    only_values = ours.dtype != np.int64 and not sizes_from_values
    text = f"differs in {elements:,} of {ours.size:,} stored numbers"
    return StoredDifference(one.name, elements, text, only_values)


def _operation(node: onnx.NodeProto) -> list[bytes]:
    attributes = sorted(node.attribute, key=lambda a: a.name)
    return [f"{node.domain}/{node.op_type}/{node.overload}".encode(), *(_bytes(a) for a in attributes)]


def _content(tensor: onnx.TensorProto) -> list[bytes]:
    array = _array(tensor)
    if array is None:
        return [_bytes(tensor)]
    return [str(tensor.data_type).encode(), str(array.shape).encode(), array.tobytes()]


def _array(tensor: onnx.TensorProto) -> NDArray[Any] | None:
    """The numbers of a constant; None if it is malformed or holds strings."""
    try:
        array = np.asarray(onnx.numpy_helper.to_array(tensor))
    except (ValueError, TypeError):
        return None
    return None if array.dtype.hasobject else array


def _elements_that_differ(ours: NDArray[Any], theirs: NDArray[Any]) -> int:
    """Counted byte by byte: NaN equals NaN, and 0.0 is not -0.0."""
    one, other = (np.ascontiguousarray(x).reshape(-1, 1).view(np.uint8) for x in (ours, theirs))
    return max(1, int(np.count_nonzero((one != other).any(axis=1))))


def _additional(ours: dict[str, bytes], theirs: dict[str, bytes]) -> list[str]:
    """Tensors of ours whose signature is not among theirs, the first of each."""
    known = set(theirs.values())
    return [name for name, signature in ours.items() if signature not in known]


def _bytes(message: Any) -> bytes:
    content: bytes = message.SerializeToString(deterministic=True)
    return content


def _hash(*parts: bytes) -> bytes:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(len(part).to_bytes(8, "little"))
        digest.update(part)
    return digest.digest()
