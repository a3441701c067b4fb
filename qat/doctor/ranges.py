"""The values that reach each activation quantizer in a float run."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qat.contexts import training_mode
from qat.quantizers import Mode, Quantizer
from qat.transform import mode, quantizers
from qat.transform.batches import call_model

KEPT = 20_000
"""About how many values of a batch quantiles and shares are taken from."""


@dataclass
class Range:
    """The values of one tensor: lowest, highest, the magnitude below which 99.9 % lie, and the share of negative ones."""

    lowest: float = float("inf")
    highest: float = float("-inf")
    usual: float = 0.0
    negative: float = 0.0


def watch_ranges(prepared: nn.Module, batches: Iterable[Any]) -> dict[str, Range]:
    """Run the network in float and note what reaches each activation quantizer, by name."""
    watched = {name: q for name, q in quantizers(prepared).items() if not q.is_weight}
    found = {name: Range() for name in watched}
    hooks = [q.register_forward_pre_hook(_Watcher(q, found[name])) for name, q in watched.items()]
    try:
        with torch.no_grad(), training_mode(prepared, False), mode(prepared, Mode.OFF):
            for batch in batches:
                call_model(prepared, batch)
    finally:
        for hook in hooks:
            hook.remove()
    return {name: values for name, values in found.items() if values.lowest <= values.highest}


class _Watcher:
    """A hook that notes what a quantizer gets."""

    def __init__(self, quantizer: Quantizer, found: Range) -> None:
        self.quantizer, self.found = quantizer, found

    def __call__(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        x, found = inputs[0], self.found
        if not x.is_floating_point() or not x.numel():
            return
        x = F.relu(x) if self.quantizer.fuses_relu else x
        few = x.detach().flatten()[:: max(1, x.numel() // KEPT)].float()
        found.lowest, found.highest = min(found.lowest, float(x.min())), max(found.highest, float(x.max()))
        found.usual = max(found.usual, float(few.abs().quantile(0.999)))
        found.negative = max(found.negative, float((few < 0).float().mean()))
