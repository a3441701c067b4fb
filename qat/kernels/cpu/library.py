"""The C functions of fake_quantize.c, on tensors."""

from __future__ import annotations

import ctypes
import functools
import logging
import os
import subprocess
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from qat.kernels.cpu.build import BuildError, NoCompilerError, load_checked, shared_library

log = logging.getLogger(__name__)

T = TypeVar("T")

CHUNK = 4096
"""Elements that are summed together if all share one scale."""
LOOK_UP_CHUNK = 1 << 16
"""Elements whose gradients are summed together in `look_up_backward`, into 256 sums."""
MIN_ELEMENTS_FOR_THREADS = 1 << 15
"""Below this size, one thread is faster than several."""
ROUNDING_ERROR_STEPS = 252
"""The rounding error, in [-0.5, 0.5], is saved in steps of 1 / 252."""
OUTSIDE = 127
"""What is saved on or beyond the upper bound; -127 at the lower one."""
NOT_A_NUMBER = -128
"""What is saved of NaN."""


@functools.cache
def load_library(source: str) -> ctypes.CDLL | None:
    """The compiled form of a C file in this folder; None without a C compiler, or with QAT_NATIVE=0 in the environment.

    If it cannot be compiled or loaded, one warning says why.
    """
    if os.environ.get("QAT_NATIVE") == "0":
        return None
    try:
        return load_checked(shared_library(Path(__file__).with_name(source)))
    except NoCompilerError as error:
        log.info("%s is not compiled, torch's own operations compute instead: %s", source, error)
    except (BuildError, OSError, subprocess.SubprocessError) as error:
        _warn_once(str(error))
    return None


def bind(source: str, kernels: Callable[[ctypes.CDLL], T]) -> T | None:
    """The functions of a compiled C file; None where `load_library` has none, or the file lacks one of them."""
    library = load_library(source)
    try:
        return None if library is None else kernels(library)
    except AttributeError as error:
        _warn_once(f"the compiled {source} lacks a function ({error})")
        return None


_warned: list[str] = []
"""The reason of the warning, once it was given."""


def _warn_once(reason: str) -> None:
    if not _warned:
        _warned.append(reason)
        warnings.warn(
            f"the compiled kernels are not used, torch's own operations compute the same, more slowly: {reason}; "
            "QAT_CACHE_DIR chooses another folder for them, QAT_NATIVE=0 switches them off.",
            stacklevel=3,
        )


@functools.cache
def load_kernels() -> Kernels | None:
    """The compiled functions of fake_quantize.c; None where `load_library` has none."""
    return bind("fake_quantize.c", Kernels)


def loaded_kernels() -> Kernels:
    """`load_kernels()`, for callers that know that kernels are available."""
    kernels = load_kernels()
    assert kernels is not None
    return kernels


class Kernels:
    """The compiled functions. All tensors are float32 on the CPU, dense, and in one common memory order.

    x of `fake_quantize` and grad of `fake_quantize_backward_from_saved` may be bfloat16; then so are y and dx. A scale is one
    value, or one for each row of x: runs of equal length in memory order.
    """

    def __init__(self, library: ctypes.CDLL) -> None:
        pointer, size, real, count = ctypes.c_void_p, ctypes.c_int64, ctypes.c_float, ctypes.c_int
        sizes = [size, size, count]
        self._fake_quantize = {
            torch.float32: library.fake_quantize_forward,
            torch.bfloat16: library.fake_quantize_forward_bfloat16,
        }
        for function in self._fake_quantize.values():
            function.argtypes = [pointer, pointer, size, real, real, pointer, pointer, *sizes]
        self._fake_quantize_backward = library.fake_quantize_backward
        self._fake_quantize_backward.argtypes = [*[pointer] * 3, size, real, real, pointer, pointer, *sizes]
        self._fake_quantize_backward_from_saved = {
            torch.float32: library.fake_quantize_backward_from_saved,
            torch.bfloat16: library.fake_quantize_backward_from_saved_bfloat16,
        }
        for function in self._fake_quantize_backward_from_saved.values():
            function.argtypes = [pointer, pointer, real, real, pointer, pointer, *sizes]
        self._clip_and_round = library.clip_and_round_forward
        self._clip_and_round.argtypes = [*[pointer] * 4, size, pointer, *sizes]
        self._clip_and_round_backward = library.clip_and_round_backward
        self._clip_and_round_backward.argtypes = [*[pointer] * 6, size, pointer, count, pointer, pointer, *sizes]
        self._look_up = library.look_up_forward
        self._look_up.argtypes = [pointer, real, real, real, *[pointer] * 3, size, count]
        self._look_up_backward = library.look_up_backward
        self._look_up_backward.argtypes = [*[pointer] * 5, *sizes]
        self._to_codes, self._from_codes = library.to_codes, library.from_codes
        self._to_codes.argtypes = self._from_codes.argtypes = [pointer, pointer, size, real, pointer, *sizes]

    def fake_quantize(self, x: Tensor, scale: Tensor, lo: float, hi: float, save: bool) -> tuple[Tensor, Tensor | None]:
        """`round(clamp(x / scale, lo, hi)) * scale`; with `save`, also int8 for `fake_quantize_backward_from_saved`."""
        y = torch.empty_like(x)
        saved = torch.empty_like(x, dtype=torch.int8) if save else None
        outputs = (y.data_ptr(), None if saved is None else saved.data_ptr())
        self._fake_quantize[x.dtype](
            x.data_ptr(), scale.data_ptr(), _scale_step(scale), lo, hi, *outputs, *_sizes(x, scale.numel())
        )
        return y, saved

    def fake_quantize_backward(
        self, grad: Tensor, x: Tensor, scale: Tensor, lo: float, hi: float
    ) -> tuple[Tensor, Tensor]:
        """(dx, dscale): one dscale for each scale."""
        dx, sums = _empty_gradients(grad, scale.numel())
        inputs = (grad.data_ptr(), x.data_ptr(), scale.data_ptr(), _scale_step(scale), lo, hi)
        self._fake_quantize_backward(*inputs, dx.data_ptr(), sums.data_ptr(), *_sizes(grad, scale.numel()))
        return dx, _per_scale(sums, scale.numel())

    def fake_quantize_backward_from_saved(
        self, grad: Tensor, saved: Tensor, lo: float, hi: float, n_scales: int
    ) -> tuple[Tensor, Tensor]:
        """The same; each term of dscale is off by at most |grad| / (2 * ROUNDING_ERROR_STEPS)."""
        dx, sums = _empty_gradients(grad, n_scales)
        inputs = (grad.data_ptr(), saved.data_ptr(), lo, hi)
        self._fake_quantize_backward_from_saved[grad.dtype](
            *inputs, dx.data_ptr(), sums.data_ptr(), *_sizes(grad, n_scales)
        )
        return dx, _per_scale(sums, n_scales)

    def clip_and_round(self, x: Tensor, lo: Tensor, hi: Tensor, scale: Tensor) -> Tensor:
        """`round(clamp(x, lo, hi) / scale) * scale`, with one lo and hi for each scale."""
        y = torch.empty_like(x)
        ranges = (lo.data_ptr(), hi.data_ptr(), scale.data_ptr(), _scale_step(scale))
        self._clip_and_round(x.data_ptr(), *ranges, y.data_ptr(), *_sizes(x, scale.numel()))
        return y

    def clip_and_round_backward(
        self, grad: Tensor, x: Tensor, y: Tensor, lo: Tensor, hi: Tensor, scale: Tensor, slopes: Tensor
    ) -> tuple[Tensor, Tensor]:
        """dx and (3, n_scales): sums of grad where x <= lo, of grad where x >= hi, of grad * y - dx * x in between.

        Args:
            slopes: (2, points), the slope of rounding at x / scale - round(x / scale) = -0.5 .. 0.5, for positive and for
                negative gradients; a single point is a constant slope.
        """
        dx, n_scales = torch.empty_like(grad), scale.numel()
        sums = torch.empty(3, _n_rows(grad, n_scales), dtype=torch.float32, device=grad.device)
        ranges = (lo.data_ptr(), hi.data_ptr(), scale.data_ptr(), _scale_step(scale))
        inputs = (grad.data_ptr(), x.data_ptr(), y.data_ptr(), *ranges, slopes.data_ptr(), slopes.shape[1])
        self._clip_and_round_backward(*inputs, dx.data_ptr(), sums.data_ptr(), *_sizes(grad, n_scales))
        return dx, sums if n_scales > 1 else sums.sum(dim=1, keepdim=True)

    def to_codes(self, x: Tensor, scale: Tensor, lo: float) -> Tensor | None:
        """uint8 `round(x / scale) - lo` of values that `fake_quantize` returned; None if one, such as NaN, has no code."""
        codes = torch.empty_like(x, dtype=torch.uint8)
        arguments = (x.data_ptr(), scale.data_ptr(), _scale_step(scale), lo, codes.data_ptr())
        without_code = self._to_codes(*arguments, *_sizes(x, scale.numel()))
        return None if without_code else codes

    def from_codes(self, codes: Tensor, scale: Tensor, lo: float) -> Tensor:
        """The values that `to_codes` was given, bit for bit."""
        x = torch.empty_like(codes, dtype=torch.float32)
        arguments = (codes.data_ptr(), scale.data_ptr(), _scale_step(scale), lo, x.data_ptr())
        self._from_codes(*arguments, *_sizes(codes, scale.numel()))
        return x

    def look_up(self, x: Tensor, scale: float, lo: float, hi: float, values: Tensor) -> tuple[Tensor, Tensor]:
        """(values[codes], codes), with codes = `round(clamp(x / scale, lo, hi)) - lo`, uint8."""
        y, codes = torch.empty_like(x), torch.empty_like(x, dtype=torch.uint8)
        outputs = (y.data_ptr(), codes.data_ptr())
        values = values.contiguous()
        self._look_up(x.data_ptr(), scale, lo, hi, values.data_ptr(), *outputs, x.numel(), threads_for(x))
        return y, codes

    def look_up_backward(self, grad: Tensor, codes: Tensor, slopes: Tensor) -> tuple[Tensor, Tensor]:
        """grad * slopes[codes], and for each slope the sum of grad at its code."""
        n_chunks = -(-grad.numel() // LOOK_UP_CHUNK)
        dx, sums = torch.empty_like(grad), torch.empty(n_chunks, 256, dtype=torch.float32, device=grad.device)
        slopes = slopes.contiguous()
        inputs = (grad.data_ptr(), codes.data_ptr(), slopes.data_ptr())
        self._look_up_backward(*inputs, dx.data_ptr(), sums.data_ptr(), grad.numel(), LOOK_UP_CHUNK, threads_for(grad))
        return dx, sums.sum(dim=0)[: len(slopes)]


def threads_for(x: Tensor) -> int:
    """The number of threads for this tensor: one if starting more takes longer than they save."""
    return torch.get_num_threads() if x.numel() >= MIN_ELEMENTS_FOR_THREADS else 1


def _sizes(x: Tensor, n_scales: int) -> tuple[int, int, int]:
    """Elements, elements per row, threads: the last arguments of the C functions."""
    return x.numel(), _row_length(x, n_scales), threads_for(x)


def _row_length(x: Tensor, n_scales: int) -> int:
    return x.numel() // n_scales if n_scales > 1 else CHUNK


def _n_rows(x: Tensor, n_scales: int) -> int:
    return -(-x.numel() // _row_length(x, n_scales))


def _scale_step(scale: Tensor) -> int:
    """The distance between the scales of two neighbouring rows: 1, or 0 if all rows share one."""
    return int(scale.numel() > 1)


def _empty_gradients(grad: Tensor, n_scales: int) -> tuple[Tensor, Tensor]:
    """Empty dx, and empty sums, one per row."""
    return torch.empty_like(grad), torch.empty(_n_rows(grad, n_scales), dtype=torch.float32, device=grad.device)


def _per_scale(sums: Tensor, n_scales: int) -> Tensor:
    """The sums of rows as sums per scale."""
    return sums if n_scales > 1 else sums.sum()
