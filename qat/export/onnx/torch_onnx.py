"""Float operations written by torch.onnx: each is exported on its own, checked, and copied into the file."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import torch
from torch import Tensor, fx

from qat.contexts import quiet
from qat.export.onnx.example_outputs import ExampleOutputs, tensors_in
from qat.export.onnx.graph_writer import OPSET, GraphWriter, NoOnnxFormError
from qat.export.onnx.runtime import session
from qat.torch_private import tree_leaves, tree_map, tree_map_only

TensorNames = Mapping[fx.Node, Any]
"""Node -> the names of the tensors in the file that hold its output, nested as the output is."""
TOLERANCE = 1e-4
"""How far ONNX Runtime may be from torch, relative to the largest result, before the export counts as wrong."""


class TorchOnnxWriter:
    """Writes operations into a graph, each with the sizes it depends on; equal operations are exported only once."""

    def __init__(self, graph: GraphWriter, model: fx.GraphModule) -> None:
        self.graph, self.model = graph, model
        self._exported: dict[Any, onnx.ModelProto] = {}

    def write(
        self, node: fx.Node, names: TensorNames, outputs: tuple[ExampleOutputs, ExampleOutputs], prefix: str
    ) -> Any:
        """Write the operation of a node.

        Args:
            node: the node.
            names: the tensors that are in the file already.
            outputs: example outputs for two batch sizes; axes whose sizes differ are free.
            prefix: start of the names of all tensors that are written.

        Returns:
            The names of the node's results, nested as the results are.

        Raises:
            NoOnnxFormError: torch.onnx cannot write the operation, or what it writes computes something else.
        """
        operation, sources = _as_module(self.model, node, names)
        one, other = ([tensor for n in sources for tensor in tensors_in(size[n])] for size in outputs)
        key = operation.code, *((x.shape, y.shape, x.dtype) for x, y in zip(one, other, strict=True))
        if key not in self._exported:
            try:
                self._exported[key] = export_and_check(operation, one, other)
            except (torch.onnx.errors.OnnxExporterError, _UnusableExportError) as error:
                target = self.model.get_submodule(str(node.target)) if node.op == "call_module" else node.target
                raise NoOnnxFormError(target, prefix) from error
        inputs = [name for n in sources for name in tree_leaves(names[n]) if name is not None]
        results = iter(self._copy(self._exported[key].graph, inputs, prefix))
        return tree_map(lambda leaf: next(results) if isinstance(leaf, Tensor) else leaf, outputs[0][node])

    def _copy(self, exported: onnx.GraphProto, inputs: Sequence[str], prefix: str) -> list[str]:
        """Copy all nodes and constants into the graph; return the names of the results."""
        names = {"": "", **{i.name: name for i, name in zip(exported.input, inputs, strict=True)}}
        names |= {t.name: self.graph.constant(onnx.numpy_helper.to_array(t)) for t in exported.initializer}
        for node in exported.node:
            copy = onnx.NodeProto()
            copy.CopyFrom(node)
            copy.input[:] = [names[i] for i in node.input]
            names |= {output: f"{prefix}/{output}" for output in node.output if output}
            copy.output[:] = [names[o] for o in node.output]
            copy.name = copy.output[0]
            self.graph.nodes.append(copy)
        return [names[output.name] for output in exported.output]


class _UnusableExportError(Exception):
    """What torch.onnx wrote computes something else, or cannot be copied."""


def _as_module(model: fx.GraphModule, node: fx.Node, names: TensorNames) -> tuple[fx.GraphModule, list[fx.Node]]:
    """Make a module of `node` and the sizes it reads.

    Returns:
        The module, and the nodes whose tensors it takes, in the order of its inputs.
    """
    sources: dict[fx.Node, None] = {}
    copied: dict[fx.Node, None] = {}

    def collect(current: fx.Node) -> None:
        for source in current.all_input_nodes:
            if source in names:
                sources[source] = None
            else:
                collect(source)
        copied[current] = None

    collect(node)
    graph, number = fx.Graph(), itertools.count()
    copies: dict[fx.Node, Any] = {
        source: tree_map_only(str, lambda _: graph.placeholder(f"given_{next(number)}"), names[source])
        for source in sources
    }
    for old in copied:
        copies[old] = graph.create_node(old.op, old.target, *fx.map_arg((old.args, old.kwargs), copies.__getitem__))
    graph.output(copies[node])
    return fx.GraphModule(model, graph).eval(), list(sources)


def export_and_check(operation: fx.GraphModule, one: list[Tensor], other: list[Tensor]) -> onnx.ModelProto:
    """Export with torch.onnx for inputs of the shapes and dtypes of `one`, and run the result on inputs like `other`.

    Axes whose sizes differ between `one` and `other` are free.

    Raises:
        _UnusableExportError: ONNX Runtime does not compute what torch computes, or the result cannot be copied.
    """
    generator = torch.Generator().manual_seed(0)
    free = tuple(
        {axis: torch.export.Dim.AUTO for axis, (a, b) in enumerate(zip(x.shape, y.shape, strict=True)) if a != b}
        for x, y in zip(one, other, strict=True)
    )
    with quiet(["root", "torch.onnx"]):
        inputs = tuple(_random_like(x, generator) for x in one)
        program = torch.onnx.export(operation, inputs, dynamo=True, opset_version=OPSET, dynamic_shapes=free)
    assert program is not None
    model = program.model_proto
    if model.functions or any(n.domain or any(a.HasField("g") for a in n.attribute) for n in model.graph.node):
        raise _UnusableExportError
    inputs = tuple(_random_like(x, generator) for x in other)
    with torch.no_grad():
        expected = tensors_in(operation(*inputs))
    feeds = {i.name: x.numpy() for i, x in zip(model.graph.input, inputs, strict=True)}
    try:
        results = session(model.SerializeToString()).run(None, feeds)
    except Exception as error:  # the runtime has no kernel for it; its exceptions have no common base class
        raise _UnusableExportError from error
    for ours, theirs in zip(expected, results, strict=True):
        largest = ours.double().abs().max().item() if ours.numel() else 0.0
        if ours.shape != theirs.shape or not np.allclose(ours, theirs, rtol=0, atol=TOLERANCE * largest):
            raise _UnusableExportError
    return model


def _random_like(x: Tensor, generator: torch.Generator) -> Tensor:
    """Random real values or codes of this shape and dtype; zeros for indices and masks."""
    if x.is_floating_point():
        return torch.randn(x.shape, generator=generator, dtype=x.dtype)
    if x.dtype is torch.uint8:
        return torch.randint(256, x.shape, generator=generator, dtype=torch.uint8)
    return torch.zeros(x.shape, dtype=x.dtype)
