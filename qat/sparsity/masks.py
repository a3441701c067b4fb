"""Masks of weights: True where a weight stays, False where it is zero.

A mask never brings a weight back: a weight that is zero has the smallest magnitude, so it is dropped again.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor


class Pattern(NamedTuple):
    """At most `kept` of `group` neighbouring weights of one output are not zero: 2 of 4 on the sparse units of some GPUs."""

    kept: int
    group: int

    @classmethod
    def parse(cls, text: str) -> Pattern:
        """Read "2:4".

        Raises:
            ValueError: it is not a pattern.

        >>> Pattern.parse("2:4")
        Pattern(kept=2, group=4)
        """
        found = re.fullmatch(r"(\d+):(\d+)", str(text))
        kept, group = (int(found[1]), int(found[2])) if found else (0, 0)
        if not 1 <= kept < group <= 64:
            raise ValueError(
                f"pattern={text!r} is not possible: write how many of how many weights stay, as '2:4' or '1:4'."
            )
        return cls(kept, group)

    @property
    def sparsity(self) -> float:
        """The share of zeros."""
        return 1 - self.kept / self.group

    def __str__(self) -> str:
        return f"{self.kept}:{self.group}"


def keep_largest(weight: Tensor, sparsity: float) -> Tensor:
    """Keep all but the round(sparsity * n) weights of smallest magnitude; of equal ones, the first go first.

    >>> keep_largest(torch.tensor([[1.0, -3.0], [0.5, 2.0]]), 0.5)
    tensor([[False,  True],
            [False,  True]])
    """
    return keep_largest_of_all({"": weight}, sparsity)[""]


def keep_largest_of_all(weights: Mapping[str, Tensor], sparsity: float) -> dict[str, Tensor]:
    """The same over several weights together, by one threshold: layers that matter less lose more."""
    magnitudes = torch.cat([weight.detach().abs().float().flatten() for weight in weights.values()])
    order = magnitudes.argsort(stable=True)
    keep = torch.ones_like(magnitudes, dtype=torch.bool)
    keep[order[: round(sparsity * len(magnitudes))]] = False
    parts = keep.split([weight.numel() for weight in weights.values()])
    return {name: part.reshape(weight.shape) for (name, weight), part in zip(weights.items(), parts, strict=True)}


def keep_pattern(weight: Tensor, pattern: Pattern, sparsity: float | None = None) -> Tensor:
    """Keep the largest `pattern.kept` of each group, along the inputs of each output (and tap of a kernel).

    Args:
        weight: (out, in) or (out, in, *kernel); `in` is a multiple of `pattern.group`.
        pattern: that of the finished mask.
        sparsity: share of zeros now, at most that of the pattern; of the weights that the pattern drops, the smallest go first.
            None: all of them go.

    >>> keep_pattern(torch.tensor([[1.0, -3.0, 0.5, 2.0]]), Pattern(2, 4))
    tensor([[False,  True, False,  True]])
    """
    magnitudes = _groups(weight.detach().abs().float(), pattern)
    order = magnitudes.argsort(dim=1, stable=True)
    dropped = torch.zeros_like(magnitudes, dtype=torch.bool)
    dropped.scatter_(1, order[:, : pattern.group - pattern.kept], True)
    dropped = _ungrouped(dropped, weight)
    if sparsity is None:
        return ~dropped
    number = min(round(sparsity * weight.numel()), int(dropped.sum()))
    ranked = torch.where(dropped, weight.detach().abs().float(), torch.inf).flatten().argsort(stable=True)
    keep = torch.ones(weight.numel(), dtype=torch.bool, device=weight.device)
    keep[ranked[:number]] = False
    return keep.reshape(weight.shape)


def pattern_axis_fits(weight: Tensor, pattern: Pattern) -> bool:
    """Whether the inputs of each output come in whole groups."""
    return weight.ndim > 1 and weight.shape[1] % pattern.group == 0


def violations(weight: Tensor, pattern: Pattern) -> int:
    """The number of groups with more than `pattern.kept` weights that are not zero."""
    return int(((_groups(weight, pattern) != 0).sum(1) > pattern.kept).sum())


def _groups(weight: Tensor, pattern: Pattern) -> Tensor:
    """(groups, pattern.group): neighbours along axis 1, the inputs."""
    return weight.movedim(1, -1).reshape(-1, pattern.group)


def _ungrouped(groups: Tensor, like: Tensor) -> Tensor:
    return groups.reshape(like.movedim(1, -1).shape).movedim(-1, 1)
