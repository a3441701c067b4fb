"""Saving the quantized tensors of a layer for its backward pass in one byte per element instead of four."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from qat.kernels.cpu.library import loaded_kernels
from qat.torch_private import tensor_version

FEWEST_BY_ROWS = 1 << 16
"""A tensor with a scale for each row is a weight; smaller ones are not worth the time."""


class ByteEncoding(NamedTuple):
    """How a tensor is saved as bytes: its values are (lo + byte) * scale, until its `version` changes.

    scale: float32, one value, or one for each row.
    """

    scale: Tensor
    lo: float
    version: int


class SavedCodes(NamedTuple):
    """A tensor that autograd saves as bytes: a view (size, stride, offset) of the memory that `codes` stand for."""

    codes: Tensor
    encoding: ByteEncoding
    size: torch.Size
    stride: tuple[int, ...]
    offset: int


_encodings = WeakTensorKeyDictionary()
"""Live results of `fake_quantize` -> their `ByteEncoding`."""


def remember_encoding(y: Tensor, scale: Tensor, lo: float, hi: float) -> None:
    """Record that `y` is a result of `fake_quantize`. Without effect if its codes do not fit in a byte."""
    if hi - lo <= 255 and (scale.numel() == 1 or y.numel() >= FEWEST_BY_ROWS):
        _encodings[y] = ByteEncoding(scale.detach().clone(), lo, tensor_version(y))


def byte_encoding(x: Tensor) -> ByteEncoding | None:
    """How `x` can be kept as bytes; None if it is not a result of `fake_quantize` or has changed since."""
    if torch.compiler.is_compiling():  # the compiler itself decides what it saves
        return None
    encoding: ByteEncoding | None = _encodings.get(x)
    return encoding if encoding is not None and encoding.version == tensor_version(x) else None


def saving_as_codes(*tensors: Tensor) -> AbstractContextManager[Any]:
    """A `with` block in which autograd saves these tensors as codes, from which the backward pass restores the same floats.

    Those that have no `byte_encoding` are saved as they are.
    """
    encodings = [(x, byte_encoding(x)) for x in tensors]
    by_memory = {
        x.untyped_storage().data_ptr(): (x.numel(), encoding) for x, encoding in encodings if encoding is not None
    }
    if not by_memory or not torch.is_grad_enabled():
        return nullcontext()
    codes_of: dict[int, Tensor | None] = {}

    def pack(saved: Tensor) -> Tensor | SavedCodes:
        memory = saved.untyped_storage().data_ptr()
        if memory not in by_memory or saved.dtype is not torch.float32:
            return saved
        numel, encoding = by_memory[memory]
        if memory not in codes_of:
            whole = saved.as_strided((numel,), (1,), 0)  # results of fake_quantize fill their memory
            codes_of[memory] = loaded_kernels().to_codes(whole, encoding.scale, encoding.lo)
        codes = codes_of[memory]
        if codes is None:
            return saved
        return SavedCodes(codes, encoding, saved.size(), saved.stride(), int(saved.storage_offset()))

    return torch.autograd.graph.saved_tensors_hooks(pack, _unpack)


def _unpack(saved: Tensor | SavedCodes) -> Tensor:
    if isinstance(saved, Tensor):
        return saved
    whole = loaded_kernels().from_codes(saved.codes, saved.encoding.scale, saved.encoding.lo)
    return whole.as_strided(saved.size, saved.stride, saved.offset)
