"""ONNX files: read with their declared shapes checked, before a runtime allocates them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import onnx
from onnx import TensorProto

from qat.export.verification import DamagedFileError
from qat.reading.malformed import malformed

PACKED_BITS = {TensorProto.INT4: 4, TensorProto.UINT4: 4, TensorProto.FLOAT4E2M1: 4} | {
    getattr(TensorProto, name): 2 for name in ("INT2", "UINT2") if hasattr(TensorProto, name)
}
"""Types of which a byte holds several elements -> bits of an element."""
VALUE_FIELDS = ("float_data", "int32_data", "int64_data", "double_data", "uint64_data", "string_data")
"""Fields of a tensor that hold its values, if raw_data does not."""
PER_VALUE = 8
"""The most elements that one value of such a field holds."""
SHAPE_INPUTS = {"ConstantOfShape": 0, "Expand": 1, "Tile": 1}
"""Operators that make tensors as large as one of their inputs says, and which one."""
MAX_ELEMENTS = 1 << 28
"""Elements that a shape stored in a file may ask for."""


def read_onnx(path: str | Path) -> onnx.ModelProto:
    """The content of a file. No other file is opened for it.

    Raises:
        FileNotFoundError: there is no such file.
        DamagedFileError: it is not an ONNX file, its tensors declare other sizes than they have, or are stored in other files.
    """
    path = Path(path)
    with malformed(path, "is not an ONNX file, or is damaged", "write it again", DamagedFileError):
        model = onnx.load_model_from_string(path.read_bytes())
        if not model.graph.output:
            raise ValueError("it has no graph with an output")
        for graph in _graphs(model.graph):
            _check(graph, path)
    return model


def _graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """The graph, and those inside its operators."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            for inner in (*attribute.graphs, *([attribute.g] if attribute.HasField("g") else [])):
                yield from _graphs(inner)


def _check(graph: onnx.GraphProto, path: Path) -> None:
    constants = {tensor.name: tensor for tensor in graph.initializer}
    for node in graph.node:
        for attribute in node.attribute:
            for tensor in (*attribute.tensors, *([attribute.t] if attribute.HasField("t") else [])):
                _check_tensor(tensor, attribute.name, path)
                if node.op_type == "Constant" and node.output:
                    constants[node.output[0]] = tensor
    for tensor in graph.initializer:
        _check_tensor(tensor, tensor.name, path)
    for sparse in graph.sparse_initializer:
        raise ValueError(f"{sparse.values.name!r} is sparse")
    for node in graph.node:
        index = SHAPE_INPUTS.get(node.op_type, len(node.input))
        shape = constants.get(node.input[index]) if index < len(node.input) else None
        if shape is not None and math.prod(map(abs, onnx.numpy_helper.to_array(shape).ravel().tolist())) > MAX_ELEMENTS:
            raise ValueError(f"{node.op_type} {node.name!r} asks for more than {MAX_ELEMENTS:,} elements")


def _check_tensor(tensor: TensorProto, name: str, path: Path) -> None:
    """Check that a tensor has as many values as its shape says."""
    if tensor.data_location == TensorProto.EXTERNAL or tensor.external_data:
        raise DamagedFileError(
            f"{path} keeps {name!r} in another file, and no other file is read: write one file with "
            "torch.onnx.export(..., external_data=False), or make one of both with onnx.save(onnx.load(path), path)."
        )
    if any(size < 0 for size in tensor.dims):
        raise ValueError(f"{name!r} has the shape {list(tensor.dims)}")
    elements = math.prod(tensor.dims)
    if tensor.HasField("raw_data"):
        if any(getattr(tensor, field) for field in VALUE_FIELDS):
            raise ValueError(f"{name!r} is stored twice")  # of the two, readers take either
        dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)
        bits = PACKED_BITS.get(tensor.data_type, 8 * dtype.itemsize)
        if len(tensor.raw_data) != -(-elements * bits // 8):
            raise ValueError(f"{name!r} of shape {list(tensor.dims)} has {len(tensor.raw_data):,} bytes")
    elif elements > PER_VALUE * sum(len(getattr(tensor, field)) for field in VALUE_FIELDS):
        raise ValueError(f"{name!r} of shape {list(tensor.dims)} has fewer values")
