"""Steps of learned scales under Adam and its relatives, in proportion to the scale.

Adam divides a gradient by its own size, so every step moves a parameter by about the learning rate, whatever it is worth. But
the scale of an 8-bit weight is a hundredth of the weight: 4e-4 in an embedding with a standard deviation of 0.02. At a learning
rate of 1e-4 four steps take such a scale to its floor, and the table with it. Here a step d of the optimizer multiplies the
scale by exp(d), which is a step of that size on its logarithm (Jain et al. 2020, "TQT", arXiv:1903.08066, appendix B: why
thresholds should be trained in the log domain).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Adadelta, Adagrad, Adam, Adamax, NAdam, Optimizer, RAdam, RMSprop, Rprop

NORMALIZING = (Adadelta, Adagrad, Adam, Adamax, NAdam, RAdam, RMSprop, Rprop)
"""Optimizers whose steps do not depend on the size of the gradient. AdamW is an Adam; Adafactor takes the
size of the parameter into account itself."""


def step_relatively(optimizer: Optimizer, scales: Sequence[Tensor]) -> None:
    """Let every step of `optimizer`, if it normalizes gradients, multiply these scales by exp(step) instead of adding it.

    Nothing is kept between two steps, so that a resumed fit goes on bit for bit.

    Args:
        optimizer: of any kind; others are left alone.
        scales: parameters that it updates. Values that are not positive step as they always did.
    """
    if not isinstance(optimizer, NORMALIZING) or not scales:
        return
    before: list[Tensor] = []

    def remember(*_: Any) -> None:
        before[:] = [scale.detach().clone() for scale in scales]

    @torch.no_grad()
    def multiply(*_: Any) -> None:
        for scale, old in zip(scales, before, strict=True):
            scale.copy_(torch.where(old > 0, old * torch.exp(scale - old), scale))
        before.clear()

    optimizer.register_step_pre_hook(remember)
    optimizer.register_step_post_hook(multiply)
