"""The C functions of fake_quantize.c, on tensors."""

from __future__ import annotations

import ctypes
import functools
import logging
import os
from pathlib import Path

import torch
from torch import Tensor

from qat.kernels.cpu.build import BuildError, shared_library

log = logging.getLogger(__name__)

CHUNK = 4096
"""Elements that are summed together where one scale is shared by all."""
WORTH_THREADS = 1 << 15
"""Elements below which one thread is faster than several."""
LOOK_UP_CHUNK = 1 << 16
"""Elements whose gradients are summed together, into 256 sums."""
RESIDUAL_STEPS = 252
"""The rounding residual, in [-0.5, 0.5], is kept in steps of 1 / 252."""


@functools.cache
def kernels() -> Kernels | None:
    """The compiled functions; None without a C compiler, or with QAT_NATIVE=0 in the environment."""
    if os.environ.get("QAT_NATIVE") == "0":
        return None
    try:
        library = ctypes.CDLL(str(shared_library(Path(__file__).with_name("fake_quantize.c"))))
    except (BuildError, OSError) as error:
        log.info("fake quantization runs on torch's own operations: %s", error)
        return None
    return Kernels(library)


def compiled() -> Kernels:
    """`kernels()`, where it is known that there are some."""
    found = kernels()
    assert found is not None
    return found


class Kernels:
    """All tensors float32 on the CPU, dense, and in one common memory order.

    A scale is one value, or one for each row of x: runs of equal length in memory order.
    """

    def __init__(self, library: ctypes.CDLL) -> None:
        pointer, size, real, count = ctypes.c_void_p, ctypes.c_int64, ctypes.c_float, ctypes.c_int
        shape = [size, size, count]
        self._forward = library.fake_quantize_forward
        self._forward.argtypes = [pointer, pointer, size, real, real, pointer, pointer, *shape]
        self._backward = library.fake_quantize_backward
        self._backward.argtypes = [pointer, pointer, pointer, size, real, real, pointer, pointer, *shape]
        self._backward_kept = library.fake_quantize_backward_kept
        self._backward_kept.argtypes = [pointer, pointer, real, real, pointer, pointer, *shape]
        self._clip_and_round = library.clip_and_round_forward
        self._clip_and_round.argtypes = [pointer, pointer, pointer, pointer, size, pointer, *shape]
        self._clip_and_round_backward = library.clip_and_round_backward
        self._clip_and_round_backward.argtypes = [*[pointer] * 6, size, pointer, count, pointer, pointer, *shape]
        self._look_up = library.look_up_forward
        self._look_up.argtypes = [pointer, real, real, real, pointer, pointer, pointer, size, count]
        self._look_up_backward = library.look_up_backward
        self._look_up_backward.argtypes = [pointer, pointer, pointer, pointer, pointer, *shape]
        self._to_codes, self._from_codes = library.to_codes, library.from_codes
        self._to_codes.argtypes = self._from_codes.argtypes = [pointer, real, real, pointer, size, count]

    def forward(self, x: Tensor, scale: Tensor, lo: float, hi: float, keep: bool) -> tuple[Tensor, Tensor | None]:
        """`round(clamp(x / scale, lo, hi)) * scale`, and with `keep` what `backward_kept` needs: int8."""
        y = torch.empty_like(x)
        kept = torch.empty_like(x, dtype=torch.int8) if keep else None
        kept_at = None if kept is None else kept.data_ptr()
        shape = _shape(x, scale.numel())
        self._forward(x.data_ptr(), scale.data_ptr(), _step(scale), lo, hi, y.data_ptr(), kept_at, *shape)
        return y, kept

    def backward(self, grad: Tensor, x: Tensor, scale: Tensor, lo: float, hi: float) -> tuple[Tensor, Tensor]:
        """dx, and dscale: one value for each scale."""
        dx, rows = _results(grad, scale.numel())
        shape = _shape(grad, scale.numel())
        at = (grad.data_ptr(), x.data_ptr(), scale.data_ptr())
        self._backward(*at, _step(scale), lo, hi, dx.data_ptr(), rows.data_ptr(), *shape)
        return dx, _joined(rows, scale.numel())

    def backward_kept(self, grad: Tensor, kept: Tensor, lo: float, hi: float, scales: int) -> tuple[Tensor, Tensor]:
        """The same; each term of dscale is off by at most |grad| / (2 * RESIDUAL_STEPS)."""
        dx, rows = _results(grad, scales)
        shape = _shape(grad, scales)
        self._backward_kept(grad.data_ptr(), kept.data_ptr(), lo, hi, dx.data_ptr(), rows.data_ptr(), *shape)
        return dx, _joined(rows, scales)

    def clip_and_round(self, x: Tensor, lo: Tensor, hi: Tensor, scale: Tensor) -> Tensor:
        """`round(clamp(x, lo, hi) / scale) * scale`; lo and hi as many as scales."""
        y = torch.empty_like(x)
        ranges = (lo.data_ptr(), hi.data_ptr(), scale.data_ptr(), _step(scale))
        self._clip_and_round(x.data_ptr(), *ranges, y.data_ptr(), *_shape(x, scale.numel()))
        return y

    def clip_and_round_backward(
        self, grad: Tensor, x: Tensor, y: Tensor, lo: Tensor, hi: Tensor, scale: Tensor, slopes: Tensor
    ) -> tuple[Tensor, Tensor]:
        """dx; and (3, scales): sums of grad at lo or below, of grad at hi or above, of grad * y - dx * x inside.

        slopes: (2, points), the slope of rounding at residuals -0.5 .. 0.5, for positive and for negative gradients; one
        point is one slope everywhere.
        """
        dx, scales = torch.empty_like(grad), scale.numel()
        sums = torch.empty(3, -(-grad.numel() // _columns(grad, scales)))
        ranges = (lo.data_ptr(), hi.data_ptr(), scale.data_ptr(), _step(scale))
        given = (grad.data_ptr(), x.data_ptr(), y.data_ptr(), *ranges, slopes.data_ptr(), slopes.shape[1])
        self._clip_and_round_backward(*given, dx.data_ptr(), sums.data_ptr(), *_shape(grad, scales))
        return dx, sums if scales > 1 else sums.sum(dim=1, keepdim=True)

    def to_codes(self, x: Tensor, scale: float, lo: float) -> Tensor:
        """uint8 `round(x / scale) - lo` of values that `forward` made."""
        codes = torch.empty_like(x, dtype=torch.uint8)
        self._to_codes(x.data_ptr(), scale, lo, codes.data_ptr(), x.numel(), _threads(x))
        return codes

    def from_codes(self, codes: Tensor, scale: float, lo: float) -> Tensor:
        """The same values again, bit for bit."""
        x = torch.empty_like(codes, dtype=torch.float32)
        self._from_codes(codes.data_ptr(), scale, lo, x.data_ptr(), codes.numel(), _threads(codes))
        return x

    def look_up(self, x: Tensor, scale: float, lo: float, hi: float, values: Tensor) -> tuple[Tensor, Tensor]:
        """`values[code]`, and the codes `round(clamp(x / scale, lo, hi)) - lo`: uint8."""
        y, codes = torch.empty_like(x), torch.empty_like(x, dtype=torch.uint8)
        ends = (y.data_ptr(), codes.data_ptr(), x.numel(), _threads(x))
        self._look_up(x.data_ptr(), scale, lo, hi, values.contiguous().data_ptr(), *ends)
        return y, codes

    def look_up_backward(self, grad: Tensor, codes: Tensor, slopes: Tensor) -> tuple[Tensor, Tensor]:
        """grad * slopes[codes], and for each slope the sum of grad at its code."""
        dx, sums = torch.empty_like(grad), torch.empty(-(-grad.numel() // LOOK_UP_CHUNK), 256)
        at = (grad.data_ptr(), codes.data_ptr(), slopes.contiguous().data_ptr(), dx.data_ptr(), sums.data_ptr())
        self._look_up_backward(*at, grad.numel(), LOOK_UP_CHUNK, _threads(grad))
        return dx, sums.sum(dim=0)[: len(slopes)]


def _threads(x: Tensor) -> int:
    return torch.get_num_threads() if x.numel() >= WORTH_THREADS else 1


def _shape(x: Tensor, scales: int) -> tuple[int, int, int]:
    """Elements, elements of a row, threads."""
    return x.numel(), _columns(x, scales), _threads(x)


def _columns(x: Tensor, scales: int) -> int:
    return x.numel() // scales if scales > 1 else CHUNK


def _step(scale: Tensor) -> int:
    return int(scale.numel() > 1)


def _results(grad: Tensor, scales: int) -> tuple[Tensor, Tensor]:
    """Empty dx, and empty sums, one a row."""
    return torch.empty_like(grad), torch.empty(-(-grad.numel() // _columns(grad, scales)))


def _joined(rows: Tensor, scales: int) -> Tensor:
    return rows if scales > 1 else rows.sum()
