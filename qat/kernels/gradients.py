"""Functions whose gradient is not that of their formula."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class ScaleGradient(torch.autograd.Function):
    """The identity; the gradient is multiplied by a factor."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, factor: float) -> Tensor:
        ctx.factor = factor
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad * ctx.factor, None


class StraightThroughClamp(torch.autograd.Function):
    """min(max(x, lowest), highest); the gradient of x is 1 everywhere."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, lowest: Tensor | float, highest: float) -> Tensor:
        raised = x.clamp(min=lowest)
        return raised if highest == float("inf") else raised.clamp(max=highest)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return grad, None, None


class Floor(torch.autograd.Function):
    """max(x, lowest); the gradient of x is 1, but below `lowest` only where a step against it raises x."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, lowest: Tensor) -> Tensor:
        ctx.save_for_backward(x < lowest)
        return torch.maximum(x, lowest)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (below,) = ctx.saved_tensors
        return raised_only(grad, below), None


def raised_only(grad: Tensor, below: Tensor) -> Tensor:
    """The gradient; where `below`, only if a step against it raises the value, otherwise 0."""
    return torch.where(below & (grad > 0), 0, grad)
