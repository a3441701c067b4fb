"""The functions that every backend has."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor


class Operators(NamedTuple):
    """Functions of a backend on its device's tensors.

    `fake_quantize` and its kin take float32, bfloat16 and float16, and their results have the dtype of x or grad; the others
    take float32. scale, and lo and hi of `clip_and_round`: float32, one value, or one for each row of x. lo and hi of the
    others: bounds of x / scale. Sums (gradients of scales, bounds and tables) are float32 and the same in every run.
    """

    fake_quantize: Callable[..., Tensor]
    fake_quantize_and_save: Callable[..., tuple[Tensor, Tensor]]
    fake_quantize_backward: Callable[..., tuple[Tensor, Tensor]]
    fake_quantize_backward_from_saved: Callable[..., tuple[Tensor, Tensor]]
    clip_and_round: Callable[..., Tensor]
    clip_and_round_backward: Callable[..., tuple[Tensor, Tensor, Tensor, Tensor]]
    look_up: Callable[..., tuple[Tensor, Tensor]]
    look_up_backward: Callable[..., tuple[Tensor, Tensor]]
