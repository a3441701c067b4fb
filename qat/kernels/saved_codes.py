"""Saving the quantized input of a layer for its backward pass in one byte per element instead of four."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from qat.kernels.cpu.library import loaded_kernels
from qat.torch_private import tensor_version


class ByteEncoding(NamedTuple):
    """How a tensor is saved as bytes: its values are (lo + byte) * scale, as long as its `version` has not changed."""

    scale: float
    lo: float
    version: int


class SavedCodes(NamedTuple):
    """A tensor that autograd saves as bytes."""

    codes: Tensor
    encoding: ByteEncoding


_encodings = WeakTensorKeyDictionary()
"""Live results of `fake_quantize` -> their `ByteEncoding`."""


def remember_encoding(y: Tensor, scale: Tensor, lo: float, hi: float) -> None:
    """Record that `y` is a result of `fake_quantize`. Without effect if its codes do not fit in a byte."""
    if scale.numel() == 1 and hi - lo <= 255:
        _encodings[y] = ByteEncoding(scale.item(), lo, tensor_version(y))


def byte_encoding(x: Tensor) -> ByteEncoding | None:
    """How `x` can be kept as bytes; None if it is not a result of `fake_quantize` or has changed since."""
    if torch.compiler.is_compiling():  # the compiler itself decides what it saves
        return None
    encoding: ByteEncoding | None = _encodings.get(x)
    return encoding if encoding is not None and encoding.version == tensor_version(x) else None


def saving_as_codes(x: Tensor, encoding: ByteEncoding | None) -> AbstractContextManager[Any]:
    """A `with` block in which autograd saves `x` as codes, from which the backward pass restores the same floats.

    Args:
        encoding: that of `x`. None: autograd saves the floats.
    """
    if encoding is None or not torch.is_grad_enabled():
        return nullcontext()
    memory, stride = x.untyped_storage().data_ptr(), x.stride()

    def pack(saved: Tensor) -> Tensor | SavedCodes:
        is_x = saved.untyped_storage().data_ptr() == memory and saved.numel() == x.numel()
        if not is_x or saved.dtype is not torch.float32 or not (saved.is_contiguous() or saved.stride() == stride):
            return saved  # the weight, or a view with another memory order
        codes = loaded_kernels().to_codes(saved, encoding.scale, encoding.lo)
        return saved if codes is None else SavedCodes(codes, encoding)

    return torch.autograd.graph.saved_tensors_hooks(pack, _unpack)


def _unpack(saved: Tensor | SavedCodes) -> Tensor:
    if isinstance(saved, Tensor):
        return saved
    return loaded_kernels().from_codes(saved.codes, saved.encoding.scale, saved.encoding.lo)
