"""Whether a training diverged: then its file is not what is wrong."""

from __future__ import annotations

import torch
from torch import Tensor, nn

MILLION = 1_000_000
GROWN = 10.0
"""Weights that are so many times as large as before come from a training that diverged."""


def divergence(
    trained: nn.Module,
    before: nn.Module | None,
    then: str = "in the float network",
    rate: str = "the learning rate",
) -> str:
    """What shows that the training diverged, as a sentence; "" if nothing does.

    Args:
        trained: the network after training.
        before: the same network before it; None: only numbers that are not finite show it.
        then: where, or when, that was, for the sentence.
        rate: what to lower, for the sentence.
    """
    for name, parameter in trained.named_parameters():
        if not bool(torch.isfinite(parameter).all()):
            return (
                f"The training diverged, {name} holds NaN or infinity: lower {rate}, or look for NaN in the loss and in the "
                "data."
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
    times = f"{growth[name]:,.0f}" if growth[name] < MILLION else f"more than {MILLION:,}"
    return f"The training diverged, {name} is {times} times as large as {then}: lower {rate}."


def _size(x: Tensor) -> float:
    return float(x.detach().double().square().mean().sqrt())
