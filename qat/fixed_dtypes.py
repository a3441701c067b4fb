"""Modules whose numbers keep their precision."""

from __future__ import annotations

from collections.abc import Callable
from typing import Self

from torch import Tensor, nn


class FixedDtypes(nn.Module):
    """Base class of modules that `.to`, `.half()`, ... move, with all that is in them, but never change to another dtype.

    A learned scale in bfloat16 could not learn, because its updates are smaller than its last bit, and codes multiplied by a
    scale in half precision are other numbers than a file has.
    """

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        def moved(tensor: Tensor) -> Tensor:
            new = fn(tensor)
            return new if new.dtype == tensor.dtype else tensor.to(new.device)

        super()._apply(moved, recurse)
        return self
