"""Float operations that only torch knows how to write: each is exported by torch.onnx, tried, and copied into the file."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import torch
from torch import Tensor, fx
from torch.utils._pytree import tree_leaves, tree_map, tree_map_only

from qat.contexts import quiet
from qat.export.onnx.graph_writer import OPSET, GraphWriter, NoOnnxFormError
from qat.export.runtime import session

Meaning = Mapping[fx.Node, Any]
"""What nodes return for an example: tensors without data, alone or nested in tuples, lists and dicts."""
Names = Mapping[fx.Node, Any]
"""Of the tensors in the file that nodes return, nested likewise."""
TOLERANCE = 1e-4
"""Of the largest result: how far ONNX Runtime may be from torch before an operation counts as another one."""


class TorchOnnxWriter:
    """Copies operations into a graph, each with the sizes that it depends on; equal ones are exported once."""

    def __init__(self, graph: GraphWriter, model: fx.GraphModule) -> None:
        self.graph, self.model = graph, model
        self._exported: dict[Any, onnx.ModelProto] = {}

    def write(self, node: fx.Node, names: Names, meanings: tuple[Meaning, Meaning], name: str) -> Any:
        """The names of the results of `node`, nested as they are.

        Args:
            names: of what is in the file already. meanings: for two batch sizes; axes that differ are free.
            name: begins the names of all that is written.

        Raises:
            NoOnnxFormError: torch.onnx cannot write it either, or writes something else.
        """
        island, sources = _alone(self.model, node, names)
        one, other = ([leaf for n in sources for leaf in _tensors(meaning[n])] for meaning in meanings)
        key = island.code, *((x.shape, y.shape, x.dtype) for x, y in zip(one, other, strict=True))
        if key not in self._exported:
            try:
                self._exported[key] = _exported(island, one, other)
            except (torch.onnx.errors.OnnxExporterError, _SomethingElse) as error:
                operation = self.model.get_submodule(str(node.target)) if node.op == "call_module" else node.target
                raise NoOnnxFormError(operation, name) from error
        given = [name for n in sources for name in tree_leaves(names[n]) if name is not None]
        results = iter(self._copy(self._exported[key].graph, given, name))
        return tree_map(lambda leaf: next(results) if isinstance(leaf, Tensor) else leaf, meanings[0][node])

    def _copy(self, island: onnx.GraphProto, given: Sequence[str], prefix: str) -> list[str]:
        """The names of the results."""
        names = {"": "", **{i.name: name for i, name in zip(island.input, given, strict=True)}}
        names |= {t.name: self.graph.constant(onnx.numpy_helper.to_array(t)) for t in island.initializer}
        for node in island.node:
            copy = onnx.NodeProto()
            copy.CopyFrom(node)
            copy.input[:] = [names[i] for i in node.input]
            names |= {output: f"{prefix}/{output}" for output in node.output if output}
            copy.output[:] = [names[o] for o in node.output]
            copy.name = copy.output[0]
            self.graph.nodes.append(copy)
        return [names[output.name] for output in island.output]


class _SomethingElse(Exception):
    """What torch.onnx wrote is not the operation, or nothing that can be copied."""


def _alone(model: fx.GraphModule, node: fx.Node, names: Names) -> tuple[fx.GraphModule, list[fx.Node]]:
    """A module of `node` and of the sizes that it reads, and the nodes whose tensors it takes, in the order of its inputs."""
    sources: dict[fx.Node, None] = {}
    inside: dict[fx.Node, None] = {}

    def collect(at: fx.Node) -> None:
        for source in at.all_input_nodes:
            if source in names:
                sources[source] = None
            else:
                collect(source)
        inside[at] = None

    collect(node)
    graph, number = fx.Graph(), itertools.count()
    copies: dict[fx.Node, Any] = {
        source: tree_map_only(str, lambda _: graph.placeholder(f"given_{next(number)}"), names[source])
        for source in sources
    }
    for at in inside:
        copies[at] = graph.create_node(at.op, at.target, *fx.map_arg((at.args, at.kwargs), copies.__getitem__))
    graph.output(copies[node])
    return fx.GraphModule(model, graph).eval(), list(sources)


def _exported(island: fx.GraphModule, one: list[Tensor], other: list[Tensor]) -> onnx.ModelProto:
    """What torch.onnx makes of it for inputs of these shapes and dtypes, with axes free where the two differ."""
    generator = torch.Generator().manual_seed(0)
    free = tuple(
        {axis: torch.export.Dim.AUTO for axis, (a, b) in enumerate(zip(x.shape, y.shape, strict=True)) if a != b}
        for x, y in zip(one, other, strict=True)
    )
    with quiet(["torch.onnx"]):
        inputs = tuple(_like(x, generator) for x in one)
        program = torch.onnx.export(island, inputs, dynamo=True, opset_version=OPSET, dynamic_shapes=free)
    assert program is not None
    model = program.model_proto
    if model.functions or any(n.domain or any(a.HasField("g") for a in n.attribute) for n in model.graph.node):
        raise _SomethingElse
    inputs = tuple(_like(x, generator) for x in other)
    with torch.no_grad():
        expected = _tensors(island(*inputs))
    feeds = {i.name: x.numpy() for i, x in zip(model.graph.input, inputs, strict=True)}
    try:
        found = session(model.SerializeToString()).run(None, feeds)
    except Exception as error:  # the runtime has no kernel for it; its exceptions have no common base
        raise _SomethingElse from error
    for ours, theirs in zip(expected, found, strict=True):
        largest = ours.double().abs().max().item() if ours.numel() else 0.0
        if ours.shape != theirs.shape or not np.allclose(ours, theirs, rtol=0, atol=TOLERANCE * largest):
            raise _SomethingElse
    return model


def _like(x: Tensor, generator: torch.Generator) -> Tensor:
    """Numbers of this shape and dtype: codes and real values of any size, while indices and masks are 0."""
    if x.is_floating_point():
        return torch.randn(x.shape, generator=generator, dtype=x.dtype)
    if x.dtype is torch.uint8:
        return torch.randint(256, x.shape, generator=generator, dtype=torch.uint8)
    return torch.zeros(x.shape, dtype=x.dtype)


def _tensors(result: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
