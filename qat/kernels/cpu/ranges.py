"""The C functions of ranges.c, on tensors."""

from __future__ import annotations

import ctypes
import functools

import torch
from torch import Tensor

from qat.kernels.cpu.library import bind, threads_for

BINS = 4096
"""Bins of a histogram; ranges.c has the same number."""


@functools.cache
def range_kernels() -> RangeKernels | None:
    """The compiled functions of ranges.c; None where `load_library` has none."""
    return bind("ranges.c", RangeKernels)


class RangeKernels:
    """The compiled functions. All tensors are on the CPU."""

    def __init__(self, library: ctypes.CDLL) -> None:
        pointer, size, real, count = ctypes.c_void_p, ctypes.c_int64, ctypes.c_float, ctypes.c_int
        self._count_bins = library.count_bins
        self._count_bins.argtypes = [pointer, real, pointer, size, count]
        self._search = library.search_ranges
        self._search.argtypes = [pointer, size, *[pointer] * 4, size, *[count] * 5, pointer, pointer, count]

    def histogram(self, x: Tensor, half_width: Tensor) -> Tensor:
        """How many elements of each row lie in each bin: float32 (rows, n), (rows,) -> int64 (rows, BINS)."""
        x, counts = x.contiguous(), torch.zeros(len(x), BINS, dtype=torch.int64)
        for row, width, total in zip(x, half_width.tolist(), counts, strict=True):
            self._count_bins(row.data_ptr(), width, total.data_ptr(), row.numel(), threads_for(row))
        return counts

    def best_fractions(
        self,
        data: Tensor,
        half_width: Tensor,
        bounds: tuple[Tensor, Tensor],
        grid: tuple[int, int],
        symmetric: bool,
        signed: bool,
        candidates: int,
    ) -> tuple[Tensor, Tensor]:
        """The fractions of the bounds with the smallest squared error, each float32 (rows,).

        Args:
            data: histograms, int64 (rows, BINS), or the elements themselves, float32 (rows, n).
            half_width: float32 (rows,).
            bounds: (lo, hi) of each row.
            grid: the lowest and the highest code.
            symmetric: whether both bounds shrink together.
            signed: whether a symmetric grid is signed.
            candidates: the number of fractions.
        """
        data, lo, hi, half_width = (t.contiguous() for t in (data, *bounds, half_width))
        best_lo, best_hi = torch.empty_like(lo), torch.empty_like(hi)
        x, counts = (data.data_ptr(), None) if data.is_floating_point() else (None, data.data_ptr())
        ranges = (half_width.data_ptr(), lo.data_ptr(), hi.data_ptr(), len(lo))
        options = (*grid, int(symmetric), int(signed), candidates)
        threads = threads_for(data) if len(lo) > 1 else 1
        self._search(x, data.shape[1], counts, *ranges, *options, best_lo.data_ptr(), best_hi.data_ptr(), threads)
        return best_lo, best_hi
