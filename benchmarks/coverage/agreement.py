"""How far the outputs of two networks agree."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from qat.torch_private import tree_leaves

HIGHEST = 200.0
"""Decibels that stand for equal outputs."""


def tensors(output: Any) -> list[Tensor]:
    """The tensors of a result, in the order in which a file returns them."""
    return [leaf.detach() for leaf in tree_leaves(output) if isinstance(leaf, Tensor)]


def decibels(expected: Sequence[Tensor], found: Sequence[Tensor]) -> float:
    """The lowest signal-to-quantization-noise ratio of the outputs, in dB; `-HIGHEST` if shapes or infinities differ.

    Where both are the same infinity (masked scores), an element counts as equal.

    >>> decibels([torch.tensor([3.0, 4.0])], [torch.tensor([3.0, 4.5])])
    20.0
    """
    if len(expected) != len(found):
        return -HIGHEST
    return min((_decibels(a, b) for a, b in zip(expected, found, strict=True)), default=-HIGHEST)


def _decibels(expected: Tensor, found: Tensor) -> float:
    if expected.shape != found.shape:
        return -HIGHEST
    same = expected == found
    if not expected.is_floating_point():
        return HIGHEST if bool(same.all()) else -HIGHEST
    signal, error = expected.double()[~same], (expected.double() - found.double())[~same]
    power, noise = expected.double()[expected.isfinite()].square().sum().item(), error.square().sum().item()
    if not bool(torch.isfinite(signal).all() and torch.isfinite(error).all()):
        return -HIGHEST
    if noise == 0:
        return HIGHEST
    return round(min(HIGHEST, 10 * math.log10(power / noise)), 2) if power > 0 else -HIGHEST


def centred(outputs: Sequence[Tensor]) -> list[Tensor]:
    """Outputs without their mean over the batch: what depends on the input."""
    return [x - x.mean(0, keepdim=True) if x.is_floating_point() and x.ndim else x for x in outputs]


def equal_predictions(expected: Sequence[Tensor], found: Sequence[Tensor]) -> float | None:
    """Share of equal largest classes of the first output: along the last axis, or along the second of maps (N, C, H, W)."""
    if not expected or not found or expected[0].shape != found[0].shape or expected[0].ndim < 2:
        return None
    axis = 1 if expected[0].ndim > 3 else -1
    return round((expected[0].argmax(axis) == found[0].argmax(axis)).double().mean().item(), 4)
