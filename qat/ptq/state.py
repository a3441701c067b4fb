"""The state that passes work on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn

from qat.capture import CallFormat, CaptureError, capture
from qat.operations import read_past_their_forward
from qat.quantizers import Quantizer
from qat.transform.batches import call_model, call_of
from qat.transform.policy import Policy

ProgressCallback = Callable[[str, int, int], None]
"""Called with the progress of a pass: (what is being done, steps done, steps in total)."""


class NoGraphError(ValueError):
    """A pass needs a graph, and the network has none."""


def ignore_progress(_what: str, _done: int, _total: int) -> None:
    """An `on_progress` that does nothing."""


@dataclass
class PTQState:
    """A network on its way from float to quantized; passes change it in place.

    network: float until `Calibrate`, prepared from then on; always in evaluation mode.
    reference: from `Calibrate` on, a copy of the prepared network with all quantizers off. It computes what the float
    network computes, on the same graph.
    batches: calibration inputs, as for `qat.calibrate`; passes may iterate over them several times.
    """

    network: nn.Module
    policy: Policy
    batches: Sequence[Any]
    on_progress: ProgressCallback = ignore_progress
    reference: nn.Module | None = None
    call_format: CallFormat | None = field(default=None, init=False)
    """How batches become the inputs of `graph()`; None: by the names of forward's arguments."""

    def graph(self) -> fx.Graph:
        """The graph of the network as it is now. A ReLU that is fused into a site is a separate operation again.

        Raises:
            NoGraphError: the network cannot be traced.
        """
        try:
            captured = capture(self.network, *call_of(self.network, self.batches[0] if self.batches else ()))
        except CaptureError as reason:
            raise NoGraphError(
                f"{reason}, and this pass needs the graph: leave it out, or quantize the traceable submodules one by one."
            ) from reason
        graph, self.call_format = captured.graph, captured.form
        for node in list(graph.nodes):
            site = self.network.get_submodule(str(node.target)) if node.op == "call_module" else None
            if isinstance(site, Quantizer) and site.fuses_relu:
                tensor = node.all_input_nodes[0]
                with graph.inserting_before(node):
                    node.replace_input_with(tensor, graph.call_function(torch.relu, (tensor,)))
        return graph

    def used_once(self, graph: fx.Graph) -> dict[fx.Node, nn.Module]:
        """The modules that can be changed for one node, because they affect no other.

        They are called once, share their parameters with no other module, nothing reads these past their forward, and their
        channels are those of the layer before.
        """
        modules = {n: self.network.get_submodule(str(n.target)) for n in graph.nodes if n.op == "call_module"}
        calls = Counter(modules.values())
        holders = Counter(id(p) for m in self.network.modules() for p in m.parameters(recurse=False))
        tokens, read = self._token_norms(modules), read_past_their_forward(self.network, graph)
        return {
            node: module
            for node, module in modules.items()
            if calls[module] == 1
            and module not in tokens
            and str(node.target) not in read
            and all(holders[id(p)] == 1 for p in module.parameters())
        }

    @torch.no_grad()
    def _token_norms(self, modules: Mapping[fx.Node, nn.Module]) -> set[nn.Module]:
        """Each BatchNorm1d that gets (N, tokens, features) from a linear layer: it normalises tokens, not the outputs."""
        norms = [
            module
            for node, module in modules.items()
            if isinstance(module, nn.BatchNorm1d) and isinstance(modules.get(node.all_input_nodes[0]), nn.Linear)
        ]
        found: set[nn.Module] = set()
        if norms and self.batches:

            def note_tokens(norm: nn.Module, inputs: tuple[Tensor]) -> None:
                if inputs[0].ndim > 2:
                    found.add(norm)

            hooks = [norm.register_forward_pre_hook(note_tokens) for norm in norms]
            call_model(self.network, self.batches[0])
            for hook in hooks:
                hook.remove()
        return found
