"""Element-wise gradient scaling (Lee et al. 2021, https://arxiv.org/abs/2104.00903)."""

from __future__ import annotations

from functools import cached_property

import torch
from torch import Tensor

from qat.arguments import is_number
from qat.estimators.base import Estimator, sample_slopes


class EWGS(Estimator):
    """g * (1 + delta * sign(g) * (v - round(v))): larger where the threshold in the direction of the step, -g, is far.

    Differs from the paper: v is in steps, where the paper's x_n is in [0, 1] or [-1, 1], so delta = 1e-3 (of the authors'
    code) has the same effect at half a step from a code at all bit widths; delta is fixed, where the paper finds it from the
    Hessian's trace; the range is learned as the quantizer does it, where the paper learns a lower and an upper bound.

    Args:
        delta: strength of the scaling; 0 is straight-through.

    Raises:
        ValueError: delta outside 0..2, where gradients would change sign.
    """

    def __init__(self, delta: float = 1e-3) -> None:
        super().__init__()
        if not (is_number(delta) and 0.0 <= delta <= 2.0):
            raise ValueError(f"EWGS with delta={delta!r}: write a number from 0 (straight-through) to 2, such as 1e-3.")
        self.delta = delta

    def gradient(self, grad: Tensor, v: Tensor) -> Tensor:
        discrepancy = torch.round(v).neg_().add_(v)
        return discrepancy.mul_(grad.abs()).mul_(self.delta).add_(grad)

    @cached_property
    def slopes(self) -> Tensor:
        return sample_slopes(self)

    def extra_repr(self) -> str:
        return f"delta={self.delta}"
