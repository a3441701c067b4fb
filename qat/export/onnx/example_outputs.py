"""What every node of a graph returns for example inputs."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from qat.integer.modules import DynamicQuantize
from qat.torch_private import tree_leaves, tree_map_only

ExampleOutputs = Mapping[fx.Node, Any]
"""Node -> what it returns: tensors, most of them on the meta device, alone or nested in tuples, lists and dicts."""


def example_outputs(
    model: fx.GraphModule, inputs: Sequence[Any], with_data: Collection[fx.Node] = ()
) -> ExampleOutputs:
    """Run the model once and record what every node returns.

    Args:
        model: a graph.
        inputs: its arguments.
        with_data: nodes whose tensors are recorded with their data; of all others, shape and dtype are.
    """
    recorder = _Recorder(model, with_data)
    with torch.no_grad():
        recorder.run(*inputs)
    return recorder.outputs


def tensors_in(output: Any) -> list[Tensor]:
    """All tensors in nested tuples, lists and dicts, in order."""
    return [leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor)]


class _Recorder(fx.Interpreter):
    def __init__(self, model: fx.GraphModule, with_data: Collection[fx.Node]) -> None:
        super().__init__(model)
        self.with_data = with_data
        self.outputs: dict[fx.Node, Any] = {}

    def run_node(self, n: fx.Node) -> Any:
        output = super().run_node(n)
        is_dynamic = n.op == "call_module" and isinstance(self.module.get_submodule(str(n.target)), DynamicQuantize)
        recorded = output[0] if is_dynamic else output  # the codes; scale and zero-point are named after them
        device = "cpu" if n in self.with_data else "meta"
        self.outputs[n] = tree_map_only(Tensor, lambda t: t.detach().to(device, copy=True), recorded)
        return output
