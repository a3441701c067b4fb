"""What a layer keeps of its quantized input for the backward pass: one byte an element instead of four."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from qat.kernels.cpu.library import compiled


class ByteEncoding(NamedTuple):
    """All values of a tensor are (lo + byte) * scale, as long as nobody writes into it: `version` counts that."""

    scale: float
    lo: float
    version: int


class SavedCodes(NamedTuple):
    """A tensor that autograd keeps as bytes."""

    codes: Tensor
    encoding: ByteEncoding


_encodings = WeakTensorKeyDictionary()
"""Results of `fake_quantize` that are alive -> their `ByteEncoding`."""


def remember_encoding(y: Tensor, scale: Tensor, lo: float, hi: float) -> None:
    """Note that `y` is a result of `fake_quantize`. Without effect where a byte does not hold its codes."""
    if scale.numel() == 1 and hi - lo <= 255:
        _encodings[y] = ByteEncoding(scale.item(), lo, y._version)


def byte_encoding(x: Tensor) -> ByteEncoding | None:
    """How the values of `x` can be kept as bytes; None where they cannot, because it was not quantized or has changed."""
    encoding: ByteEncoding | None = _encodings.get(x)
    return encoding if encoding is not None and encoding.version == x._version else None


def saving_as_codes(x: Tensor, encoding: ByteEncoding | None) -> AbstractContextManager[Any]:
    """A `with` block in which autograd keeps `x` as codes and makes the same floats of them in the backward pass.

    Args:
        encoding: that of `x`. None: autograd keeps the floats.
    """
    if encoding is None or not torch.is_grad_enabled():
        return nullcontext()
    memory, stride = x.untyped_storage().data_ptr(), x.stride()

    def pack(kept: Tensor) -> Tensor | SavedCodes:
        is_x = kept.untyped_storage().data_ptr() == memory and kept.numel() == x.numel()
        if not is_x or kept.dtype is not torch.float32 or not (kept.is_contiguous() or kept.stride() == stride):
            return kept  # the weight, or a view with another memory order
        return SavedCodes(compiled().to_codes(kept, encoding.scale, encoding.lo), encoding)

    return torch.autograd.graph.saved_tensors_hooks(pack, _unpack)


def _unpack(kept: Tensor | SavedCodes) -> Tensor:
    if isinstance(kept, Tensor):
        return kept
    return compiled().from_codes(kept.codes, kept.encoding.scale, kept.encoding.lo)
