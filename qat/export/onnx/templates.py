"""Templates: groups of subgraphs that compute the same function of their inputs and weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx

from qat.export.onnx.example_outputs import ExampleOutputs, tensors_in
from qat.export.onnx.float_subgraphs import FloatSubgraph, as_module, hash_of_constants, key_of, weights_of


@dataclass
class Instance:
    """A subgraph in a network: what it reads, and what it must return."""

    subgraph: FloatSubgraph
    module: fx.GraphModule
    weights: dict[str, Tensor]
    inputs: list[Tensor]
    expected: list[Tensor]


@dataclass
class Template:
    """Float subgraphs that compute the same function of their inputs and weights; torch.onnx writes it once.

    Attributes:
        key: the key of its subgraphs.
        shapes: of the inputs, as (shape in one trial, shape in the other, dtype).
        instances: the subgraphs; the first one is exported.
        lifted: whether weights are inputs of the exported function.
    """

    key: Any
    shapes: list[tuple[torch.Size, torch.Size, torch.dtype]]
    instances: list[Instance] = field(default_factory=list)
    lifted: bool = True

    @property
    def identity(self) -> Any:
        """Equal for templates that torch.onnx writes alike: the key, and the numbers that are constants of what it writes."""
        names = self.instances[0].weights if self.lifted else ()
        return self.key, self.lifted, tuple(hash_of_constants(i.module, names) for i in self.instances)

    @property
    def weights(self) -> list[Tensor]:
        """The weights of the exported instance that are inputs."""
        return list(self.instances[0].weights.values()) if self.lifted else []


def templates_of(
    model: fx.GraphModule,
    subgraphs: Sequence[FloatSubgraph],
    names: Mapping[fx.Node, Any],
    sizes: tuple[ExampleOutputs, ExampleOutputs],
) -> list[Template]:
    """Group subgraphs that compute the same function.

    Args:
        model: the graph.
        subgraphs: some of its operations.
        names: node -> the names of its tensors, nested as its output is.
        sizes: outputs in two trials; the second one has the data of all sources and results.
    """
    templates: dict[Any, Template] = {}
    one, other = sizes
    for subgraph in subgraphs:
        module = as_module(model, subgraph, names)
        inputs = [x for s in subgraph.sources for x in tensors_in(other[s])]
        expected = [x for r in subgraph.results for x in tensors_in(other[r])]
        before = [x for s in subgraph.sources for x in tensors_in(one[s])]
        shapes = [(a.shape, b.shape, a.dtype) for a, b in zip(before, inputs, strict=True)]
        key = key_of(model, subgraph, sizes)
        template = templates.setdefault(key, Template(key, shapes))
        template.instances.append(Instance(subgraph, module, weights_of(module), inputs, expected))
    return list(templates.values())
