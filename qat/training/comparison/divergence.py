"""Whether a training diverged: then its file is not what is wrong."""

from __future__ import annotations

import torch
from torch import Tensor, nn

GROWN = 10.0
"""Weights that are so many times as large as before, and whose file does not pass, come from a training that diverged."""


def divergence(trained: nn.Module, before: nn.Module | None) -> str:
    """What shows that the training diverged, as a sentence; "" if nothing does.

    Args:
        trained: the network after training.
        before: the same network before it; None: only numbers that are not finite show it.
    """
    for name, parameter in trained.named_parameters():
        if not bool(torch.isfinite(parameter).all()):
            return (
                f"The training diverged, {name} holds NaN or infinity: lower the learning rate, or look for NaN in the loss "
                "and in the data."
            )
    old = {} if before is None else dict(before.named_parameters())
    growth = {
        name: _size(parameter) / _size(old[name])
        for name, parameter in trained.named_parameters()
        if name in old and parameter.dim() > 1 and _size(old[name]) > 0
    }
    name = max(growth, key=growth.__getitem__, default="")
    if not name or growth[name] < GROWN:
        return ""
    return (
        f"The training diverged, {name} is {growth[name]:,.0f} times as large as in the float network: lower the learning "
        "rate."
    )


def _size(x: Tensor) -> float:
    return float(x.detach().double().square().mean().sqrt())
