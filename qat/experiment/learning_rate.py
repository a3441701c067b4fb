"""Learning rates over a run, as factors, so that every parameter group keeps its own ratio."""

from __future__ import annotations

import math

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR


def cosine(optimizer: Optimizer, steps: int, warmup: float = 0.05, final: float = 0.0) -> LambdaLR:
    """Linear from 0 over the first `warmup` of all steps, then a half cosine (Loshchilov & Hutter 2017) down to `final`.

    Args:
        steps: optimizer steps of the whole run.
        warmup: share of them, in [0, 1). final: share of the learning rate that is left at the end, in [0, 1].

    Raises:
        ValueError: a share is out of range.
    """
    if not 0 <= warmup < 1:
        raise ValueError(f"warmup={warmup} is not in [0, 1): write the share of the steps, as 0.05.")
    if not 0 <= final <= 1:
        raise ValueError(f"final={final} is not in [0, 1]: write the share of the learning rate that is left, as 0.0.")
    return LambdaLR(optimizer, lambda step: factor(step, steps, warmup, final))


def factor(step: int, steps: int, warmup: float, final: float) -> float:
    """What the learning rate is multiplied with in step 0, 1, ... of `steps`.

    >>> [round(factor(step, 10, 0.2, 0.0), 3) for step in (0, 1, 2, 6, 10)]
    [0.5, 1.0, 1.0, 0.5, 0.0]
    """
    rising = round(steps * warmup)
    if step < rising:
        return (step + 1) / rising
    progress = min(1.0, (step - rising) / max(1, steps - rising))
    return final + (1 - final) * (1 + math.cos(math.pi * progress)) / 2
