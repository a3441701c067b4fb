"""What a layer keeps of its quantized input for the backward: one byte an element instead of four."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor

from qat.native.kernels import compiled

GRID = "_qat_grid"


class Grid(NamedTuple):
    """All values of a tensor are (lo + a byte) * scale, as long as nobody has written into it: `version` counts that."""

    scale: float
    lo: float
    version: int


class Codes(NamedTuple):
    """A tensor on a grid, as bytes."""

    codes: Tensor
    grid: Grid


def mark(y: Tensor, scale: Tensor, lo: float, hi: float) -> None:
    """Note on the tensor itself that it is the result of `fake_quantize`. Without effect where a byte does not hold it."""
    if scale.numel() == 1 and hi - lo <= 255:
        setattr(y, GRID, Grid(scale.item(), lo, y._version))


def keeping_codes(x: Tensor) -> AbstractContextManager[Any]:
    """A `with` in which autograd keeps x as codes, if it is marked, and makes the same floats of them in the backward."""
    grid: Grid | None = getattr(x, GRID, None)
    if grid is None or grid.version != x._version or not torch.is_grad_enabled():
        return nullcontext()
    at, size, stride = x.data_ptr(), x.numel(), x.stride()

    def pack(kept: Tensor) -> Tensor | Codes:
        same = kept.data_ptr() == at and kept.numel() == size and kept.dtype is torch.float32
        if not same or not (kept.is_contiguous() or kept.stride() == stride):
            return kept
        return Codes(compiled().to_codes(kept, grid.scale, grid.lo), grid)

    return torch.autograd.graph.saved_tensors_hooks(pack, _unpack)


def _unpack(kept: Tensor | Codes) -> Tensor:
    return compiled().from_codes(kept.codes, kept.grid.scale, kept.grid.lo) if isinstance(kept, Codes) else kept
