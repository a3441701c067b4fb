"""What a network decides: the class of its largest output, or whether its only output is positive."""

from __future__ import annotations

import torch
from torch import Tensor


def decisions(output: Tensor) -> Tensor:
    """The class with the largest output, per sample, token or pixel; of binary outputs, whether they are positive.

    Complex outputs decide by their magnitude; truth values are decisions.
    """
    if output.dtype == torch.bool:
        return output
    if output.is_complex():
        output = output.abs()
    return output > 0 if is_binary(output) else output.argmax(class_axis(output))


def is_binary(output: Tensor) -> bool:
    """Whether an output has the shape (N,), or one value in the place of classes."""
    return output.ndim < 2 or output.shape[class_axis(output)] < 2


def class_axis(output: Tensor) -> int:
    """The axis of the classes: the second one of maps (N, C, H, W), else the last."""
    return 1 if output.ndim > 3 else -1
