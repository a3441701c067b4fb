"""What every node of a graph returns for example inputs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx

from qat.integer.modules import DynamicQuantize
from qat.torch_private import tree_leaves, tree_map_only

ExampleOutputs = Mapping[fx.Node, Any]
"""Node -> what it returns: tensors on the meta device, alone or nested in tuples, lists and dicts."""


def example_outputs(model: fx.GraphModule, inputs: tuple[Tensor, ...]) -> ExampleOutputs:
    """Run the model once and record what every node returns, without the data of the tensors."""
    recorder = _Recorder(model)
    with torch.no_grad():
        recorder.run(*inputs)
    return recorder.outputs


def tensors_in(output: Any) -> list[Tensor]:
    """All tensors in nested tuples, lists and dicts, in order."""
    return [leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor)]


class _Recorder(fx.Interpreter):
    def __init__(self, model: fx.GraphModule) -> None:
        super().__init__(model)
        self.outputs: dict[fx.Node, Any] = {}

    def run_node(self, n: fx.Node) -> Any:
        output = super().run_node(n)
        is_dynamic = n.op == "call_module" and isinstance(self.module.get_submodule(str(n.target)), DynamicQuantize)
        recorded = output[0] if is_dynamic else output  # the codes; scale and zero-point are named after them
        self.outputs[n] = tree_map_only(Tensor, lambda t: t.to("meta"), recorded)
        return output
