"""BatchNorm re-estimation (Sun et al. 2019, "Hybrid 8-bit floating point", section 3; Nagel et al. 2022, section 5.3)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from qat.nn import is_batch_norm
from qat.ptq.base import Pass
from qat.ptq.side_by_side import SideBySideRun
from qat.ptq.state import PTQState


class BatchNormReestimation(Pass):
    """Moves the statistics of every BatchNorm so that its output has the mean and variance of the float network's.

    variance' = variance Var[x^] / Var[x] and mean' = E[x^] - (E[x] - mean) sqrt(variance' / variance), over all calibration
    data, with x the input, mean and variance the statistics in the float network, and x^ the input in the quantized one, behind
    the re-estimated BatchNorms before it. A BatchNorm that runs twice takes its first input.

    Differs from the papers: they replace the statistics by those of x^. That also takes over the difference between a few
    calibration images, without augmentation, and all training images, which with a few hundred images costs more than it
    gains.
    """

    def apply(self, state: PTQState) -> None:
        networks, seen = SideBySideRun(state), set()
        norms = [m for m in state.network.modules() if is_batch_norm(m)]
        for node in networks:
            norm = state.network.get_submodule(str(node.target)) if node.op == "call_module" else None
            if norm is not None and is_batch_norm(norm) and norm not in seen:
                seen.add(norm)
                assert state.reference is not None
                reference, source = state.reference.get_submodule(str(node.target)), node.all_input_nodes[0]
                _move(norm, reference, _statistics(networks.quantized[source]), _statistics(networks.float[source]))
                state.on_progress("BatchNorm re-estimation", len(seen), len(norms))


def has_statistics(module: nn.Module) -> bool:
    """Whether this is a BatchNorm with moving statistics."""
    return is_batch_norm(module) and isinstance(module.running_mean, Tensor)


def _move(norm: Any, reference: Any, after: tuple[Tensor, Tensor], before: tuple[Tensor, Tensor]) -> None:
    if not has_statistics(norm):
        return
    wider = (after[1] + norm.eps) / (before[1] + norm.eps)
    norm.running_var.copy_(((reference.running_var.double() + norm.eps) * wider - norm.eps).clamp(min=0.0))
    move_mean(norm, reference, after[0], before[0])


def move_mean(norm: Any, reference: Any, after: Tensor, before: Tensor) -> None:
    """Let inputs with the mean `after` leave a BatchNorm as those with the mean `before` leave that of the float network."""
    wider = (norm.running_var.double() + norm.eps) / (reference.running_var.double() + norm.eps)
    norm.running_mean.copy_(after - (before - reference.running_mean.double()) * wider.sqrt())


def _statistics(batches: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Mean and variance of each channel over all batches, float64 (channels,)."""
    rows = [x.double().movedim(1, -1).flatten(0, -2) for x in batches]
    count = sum(len(x) for x in rows)
    mean = torch.stack([x.sum(dim=0) for x in rows]).sum(dim=0) / count
    squares = torch.stack([(x - mean).square().sum(dim=0) for x in rows]).sum(dim=0)
    return mean, squares / count
