"""Learning-rate schedules over a whole run, as factors: every parameter group keeps its own ratio."""

from __future__ import annotations

import math

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR


def warmup_cosine(optimizer: Optimizer, steps: int, warmup: float = 0.05, final: float = 0.0) -> LambdaLR:
    """Linear warm-up from 0, then half a cosine (Loshchilov & Hutter 2017) down to `final`.

    Args:
        optimizer: its learning rates are the highest of the run.
        steps: optimizer steps of the whole run.
        warmup: fraction of the steps in which the rate rises, in [0, 1).
        final: fraction of the learning rate that is left at the end, in [0, 1].

    Raises:
        ValueError: a fraction is out of range.
    """
    if not 0 <= warmup < 1:
        raise ValueError(f"warmup={warmup} is not in [0, 1): write the fraction of the steps, as 0.05.")
    if not 0 <= final <= 1:
        raise ValueError(
            f"final={final} is not in [0, 1]: write the fraction of the learning rate that is left, as 0.0."
        )
    return LambdaLR(optimizer, lambda step: factor(step, steps, warmup, final))


def factor(step: int, steps: int, warmup: float, final: float) -> float:
    """The factor of the learning rate in step 0, 1, ... of `steps`.

    >>> [round(factor(step, 10, 0.2, 0.0), 3) for step in (0, 1, 2, 6, 10)]
    [0.5, 1.0, 1.0, 0.5, 0.0]
    """
    warmup_steps = round(steps * warmup)
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    progress = min(1.0, (step - warmup_steps) / max(1, steps - warmup_steps))
    return final + (1 - final) * (1 + math.cos(math.pi * progress)) / 2
