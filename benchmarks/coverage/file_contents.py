"""What a file computes in integers, and stores as integers, read off the file as ONNX Runtime executes it.

Nothing of `qat` is used here, so that a fault in its own account cannot hide.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper
from torch import Tensor

INTEGER = {"QLinearConv": 3, "ConvInteger": 1, "QLinearMatMul": 3, "MatMulInteger": 1, "QGemm": 3, "DynamicQuantizeMatMul": 1,
           "MatMulIntegerToFloat": 1}  # fmt: skip
"""Operators with an integer kernel -> which input is the weight."""
IN_FLOAT = dict.fromkeys(
    ("Conv", "FusedConv", "NhwcFusedConv", "ConvTranspose", "Gemm", "FusedGemm", "MatMul", "FusedMatMul", "MatMulNBits", "LSTM",
     "GRU", "RNN", "Einsum", "TransposeMatMul"), 1,
)  # fmt: skip
"""Operators that multiply floats."""
CODES = {TensorProto.INT8, TensorProto.UINT8, TensorProto.INT4, TensorProto.UINT4, TensorProto.INT2, TensorProto.UINT2}


def session(
    path: str | Path | bytes, options: onnxruntime.SessionOptions | None = None
) -> onnxruntime.InferenceSession:
    """A session on the CPU that adds products exactly on every processor."""
    options = options or onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.add_session_config_entry("session.x64quantprecision", "1")
    source = path if isinstance(path, bytes) else str(path)
    return onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])


def run(file: onnxruntime.InferenceSession, inputs: Sequence[Tensor]) -> list[Any]:
    """The outputs of a file for inputs in their order."""
    names = [i.name for i in file.get_inputs()]
    if len(names) != len(inputs):
        raise ValueError(f"the file has {len(names)} inputs ({', '.join(names)}), the network {len(inputs)} tensors.")
    return file.run(None, {name: x.numpy() for name, x in zip(names, inputs, strict=True)})


@dataclass
class MultiplyAdds:
    """Multiply-adds of one batch: of layers with weights, and of products of two activations; how many are of integers."""

    layers: int = 0
    layers_in_integers: int = 0
    products: int = 0
    products_in_integers: int = 0


def multiply_adds(path: Path, inputs: Sequence[Tensor]) -> MultiplyAdds:
    """Count the multiply-adds of the graph that ONNX Runtime makes of a file, by running it."""
    with TemporaryDirectory() as folder:
        options = onnxruntime.SessionOptions()
        # The next level packs weights into layouts of the processor.
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
        options.optimized_model_filepath = str(Path(folder) / "optimized.onnx")
        session(path, options)
        model = onnx.load(options.optimized_model_filepath)
    nodes = [n for n in model.graph.node if n.op_type in INTEGER or n.op_type in IN_FLOAT]
    activations = _depending_on_inputs(model.graph)
    shapes = _shapes(model, nodes, inputs)
    count = MultiplyAdds()
    for node in nodes:
        weight = node.input[{**INTEGER, **IN_FLOAT}[node.op_type]]
        amount, integer = _multiply_adds(node, shapes), node.op_type in INTEGER
        if weight in activations:
            count.products += amount
            count.products_in_integers += amount if integer else 0
        else:
            count.layers += amount
            count.layers_in_integers += amount if integer else 0
    return count


def _depending_on_inputs(graph: onnx.GraphProto) -> set[str]:
    """The tensors that are not constant."""
    constants = {i.name for i in graph.initializer}
    found = {i.name for i in graph.input} - constants
    for node in graph.node:
        if found & set(node.input):
            found |= set(node.output)
    return found


def _shapes(
    model: onnx.ModelProto, nodes: Sequence[onnx.NodeProto], inputs: Sequence[Tensor]
) -> dict[str, tuple[int, ...]]:
    """The shapes of everything that these nodes read and write."""
    shapes = {i.name: tuple(i.dims) for i in model.graph.initializer}
    outputs = {o.name for o in model.graph.output}
    produced = {name for node in model.graph.node for name in node.output}
    wanted = {name for node in nodes for name in (*node.input, node.output[0]) if name in produced}
    model.graph.output.extend(helper.make_empty_tensor_value_info(name) for name in sorted(wanted - outputs))
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL  # it is optimized already
    file = session(model.SerializeToString(), options)
    names = [o.name for o in file.get_outputs()]
    shapes |= {name: np.shape(value) for name, value in zip(names, run(file, inputs), strict=True)}
    return shapes | {i.name: tuple(x.shape) for i, x in zip(file.get_inputs(), inputs, strict=True)}


def _multiply_adds(node: onnx.NodeProto, shapes: dict[str, tuple[int, ...]]) -> int:
    first, weight = shapes.get(node.input[0], ()), shapes.get(node.input[{**INTEGER, **IN_FLOAT}[node.op_type]], ())
    attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    match node.op_type:
        case "ConvTranspose":
            return math.prod(first) // weight[0] * math.prod(weight)
        case "LSTM" | "GRU" | "RNN":  # (time, batch, inputs), and the matrix of the state beside that of the input
            return first[0] * first[1] * (math.prod(weight) + math.prod(shapes[node.input[2]]))
        case "MatMulNBits":
            return math.prod(first) * int(attributes["N"])
        case "Einsum":
            return _einsum(attributes["equation"].decode(), first, weight)
        case _ if "Conv" in node.op_type:
            return math.prod(shapes[node.output[0]]) * math.prod(weight[1:])
    transposed = attributes.get("transB", 0)
    return math.prod(shapes[node.output[0]]) * (weight[-1] if transposed else weight[max(-2, -len(weight))])


def _einsum(equation: str, *shapes: tuple[int, ...]) -> int:
    """The product of the lengths of all letters."""
    letters = equation.partition("->")[0].replace(" ", "").split(",")
    return math.prod(
        {k: n for word, shape in zip(letters, shapes, strict=True) for k, n in zip(word, shape, strict=True)}.values()
    )


def elements_of_codes(path: Path) -> int:
    """How many elements the matrices that are stored as codes of at most 8 bits have."""
    return sum(
        math.prod(i.dims) for i in onnx.load(str(path)).graph.initializer if i.data_type in CODES and len(i.dims) > 1
    )
