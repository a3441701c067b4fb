"""An integer model as an ExecuTorch program, as far as possible delegated to XNNPACK."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch import Tensor, fx, nn

from qat.contexts import quiet
from qat.export.device import Written
from qat.export.onnx.example_inputs import Examples
from qat.export.pt2e.program import exported_program
from qat.files import write_atomically
from qat.torch_private import tree_leaves

MISSING = "ExecuTorch is not installed: pip install 'qat-lightning[executorch]', or pip install executorch."
DELEGATED = "XNNPACK"
NO_OPERATIONS = {"alloc", "executorch_call_delegate", "getitem"}
"""Operators that only allocate memory or unpack results."""
LAYERS = ("convolution", "linear", "addmm", "mm")
"""The names of layers in ExecuTorch's graph."""


def export_executorch(integer: nn.Module, example_inputs: Examples, path: str | Path) -> None:
    """Write an integer model as an ExecuTorch program (`.pte`), whole or not at all.

    Inputs and outputs are floats, and have the shapes of the example.

    Args:
        integer: what `qat.convert` returned, of a network with a graph.
        example_inputs: one batch of the model's inputs: a tensor, a tuple, or a mapping of keyword arguments.
        path: the file to write.

    Raises:
        ValueError: this is not an integer model with a graph, or ExecuTorch has no kernel for an operation.
        ImportError: ExecuTorch is not installed.
    """
    write_atomically(path, lowered(integer, example_inputs).content)


def lowered(integer: nn.Module, example_inputs: Examples) -> Written:
    """The program in memory. The same model and shapes give the same bytes.

    Raises:
        ValueError, ImportError: as `export_executorch`.
    """
    with quiet(["root", "executorch"]):
        to_edge_transform_and_lower, xnnpack = _executorch()
        program, inputs = exported_program(integer, example_inputs, dynamic={})
        try:
            edge = to_edge_transform_and_lower(program, partitioner=[xnnpack()])
            content = bytes(edge.to_executorch().buffer)
        except Exception as error:  # a compiler may raise anything
            text = " ".join(str(error).split())[:200]
            raise ValueError(f"ExecuTorch cannot write {type(integer).__name__}: {text}.") from error
    module = edge.exported_program().graph_module
    inside = [node for graph in _delegates(module) for node in graph.nodes if node.op == "call_function"]
    outside = [node for node in module.graph.nodes if node.op == "call_function" and _name(node) not in NO_OPERATIONS]
    counts = Counter(f"{_name(node)} ({DELEGATED})" for node in inside) + Counter(_name(node) for node in outside)
    tensors = [x.contiguous() for x in tree_leaves(inputs.trial(0)) if isinstance(x, Tensor)]
    try:
        loaded = runtime().load_program(content)
        loaded.load_method("forward").execute(tensors)
    except RuntimeError as error:
        names = ", ".join(sorted({_name(node) for node in outside}))
        raise ValueError(
            f"ExecuTorch's runtime cannot run {type(integer).__name__}, because it has no kernel for one of {names}: replace "
            "that operation, or write target='portable'."
        ) from error
    return Written(content, dict(counts.most_common()), sum(_is_integer_layer(node) for node in inside))


def runtime() -> Any:
    """ExecuTorch's runtime.

    Raises:
        ImportError: ExecuTorch is not installed.
    """
    try:
        with quiet(["root", "executorch"]):
            import executorch.kernels.quantized  # noqa: F401  (registers its kernels with the runtime)
            from executorch.runtime import Runtime
    except ModuleNotFoundError as error:
        raise ImportError(MISSING) from error
    return Runtime.get()


def _executorch() -> tuple[Any, Any]:
    """The function that lowers a program, and XNNPACK's partitioner."""
    try:
        import executorch.kernels.quantized  # noqa: F401  (the last layer's weights are dequantized by it)
        from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
        from executorch.exir import to_edge_transform_and_lower
    except ModuleNotFoundError as error:
        raise ImportError(MISSING) from error
    return to_edge_transform_and_lower, XnnpackPartitioner


def _delegates(module: fx.GraphModule) -> Iterator[fx.Graph]:
    """The operations of each delegate, as they were before they were delegated."""
    for node in module.graph.nodes:
        delegate: Any = getattr(module, str(node.target), None) if node.op == "get_attr" else None
        if hasattr(delegate, "original_module"):
            yield delegate.original_module.graph_module.graph


def _is_integer_layer(node: fx.Node) -> bool:
    """Whether a layer stands between a dequantization and, with a bound in between or not, a quantization."""
    if _name(node) not in LAYERS:
        return False
    reader = next(iter(node.users))
    if _name(reader) in ("relu", "hardtanh"):
        reader = next(iter(reader.users))
    return _name(reader).endswith("quantize_per_tensor") and any(
        "dequantize_per_tensor" in n.name for n in node.all_input_nodes
    )


def _name(node: fx.Node) -> str:
    target: Any = node.target
    name = getattr(target, "__name__", str(target))
    return str(name).removeprefix("aten.").removesuffix(".default")
