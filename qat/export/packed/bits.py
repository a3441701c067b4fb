"""Codes of 1 to 8 bits, without a gap between them.

Layout: one stream of bits over all codes in row-major order. Code i occupies the bits `i * bits` to `(i + 1) * bits - 1`, its
lowest bit first; bit k of the stream is bit `k % 8` (0 is the lowest) of byte `k // 8`. Negative codes are two's complement.
The unused bits of the last byte are 0. In numpy:

    each = (codes.reshape(-1, 1) >> numpy.arange(bits)) & 1
    packed = numpy.packbits(each.reshape(-1).astype(numpy.uint8), bitorder="little")
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor

from qat.arguments import check_flag, is_whole_number
from qat.messages import shown

_CHUNK = 1 << 20
"""How many codes are spread into bits at a time; a multiple of 8, so that every chunk begins with a byte."""


def pack(codes: Tensor, bits: int) -> Tensor:
    """Codes, `bits` bits each, packed into bytes.

    Args:
        codes: whole numbers of any shape and dtype, in 0..2^bits - 1, or in -2^(bits-1)..2^(bits-1) - 1.
        bits: 1 to 8.

    Returns:
        uint8 (ceil(n * bits / 8),), on the device of `codes`; the layout is at the top of this module.

    Raises:
        ValueError: impossible bits, or a code that does not fit.

    >>> pack(torch.tensor([1, -1, 0, -2, 1]), 2)
    tensor([141,   1], dtype=torch.uint8)
    """
    _check_bits(bits)
    _check_codes(codes, bits)
    flat = codes.detach().reshape(-1)
    parts = [_pack(chunk, bits) for chunk in flat.split(_CHUNK)]
    return torch.cat(parts) if parts else flat.new_zeros(0, dtype=torch.uint8)


def unpack(packed: Tensor, bits: int, shape: Sequence[int], signed: bool) -> Tensor:
    """The codes that `pack` was given.

    Args:
        packed: uint8 (ceil(n * bits / 8),).
        bits: 1 to 8.
        shape: that of the codes; n is its product.
        signed: whether the highest bit of a code is its sign.

    Returns:
        int8 if `signed`, else uint8, of this shape, on the device of `packed`.

    Raises:
        ValueError: impossible bits, no shape, or another number of bytes than it needs.

    >>> unpack(torch.tensor([141, 1], dtype=torch.uint8), 2, (5,), signed=True)
    tensor([ 1, -1,  0, -2,  1], dtype=torch.int8)
    """
    _check_bits(bits)
    check_flag("signed", signed)
    if (
        isinstance(shape, str | Tensor)
        or not isinstance(shape, Sequence)
        or not all(is_whole_number(size, 0) for size in shape)
    ):
        raise ValueError(f"shape={shown(shape)} is not the shape of a tensor: write whole numbers, as (64, 3).")
    n = prod(shape)
    if not isinstance(packed, Tensor):
        raise ValueError(f"{type(packed).__name__} is not a tensor: give uint8, as qat.pack returns it.")
    if packed.dtype is not torch.uint8 or packed.ndim != 1 or packed.numel() != packed_bytes(n, bits):
        raise ValueError(
            f"{packed.dtype} of shape {tuple(packed.shape)} are not {n} codes of {bits} bits: give uint8 of shape "
            f"({packed_bytes(n, bits)},), as qat.pack returns them."
        )
    chunk = packed_bytes(_CHUNK, bits)
    parts = [_unpack(part, bits) for part in packed.split(chunk)]
    codes = torch.cat(parts)[:n].reshape(tuple(shape)) if parts else packed.new_zeros(tuple(shape))
    if not signed:
        return codes
    sign = 1 << (bits - 1)
    return ((codes.to(torch.int16) ^ sign) - sign).to(torch.int8)


def packed_bytes(n: int, bits: int) -> int:
    """How many bytes n codes take."""
    return -(-n * bits // 8)


def _pack(codes: Tensor, bits: int) -> Tensor:
    each = codes.to(torch.int16).unsqueeze(1) >> torch.arange(bits, device=codes.device)
    stream = (each & 1).to(torch.uint8).reshape(-1)
    padded = torch.nn.functional.pad(stream, (0, -len(stream) % 8)).reshape(-1, 8)
    return (padded << _places(padded)).sum(dim=1, dtype=torch.uint8)


def _unpack(packed: Tensor, bits: int) -> Tensor:
    stream = ((packed.unsqueeze(1) >> _places(packed)) & 1).reshape(-1)
    each = stream[: len(stream) // bits * bits].reshape(-1, bits)
    return (each << torch.arange(bits, device=packed.device, dtype=torch.uint8)).sum(dim=1, dtype=torch.uint8)


def _places(like: Tensor) -> Tensor:
    return torch.arange(8, device=like.device, dtype=torch.uint8)


def _check_bits(bits: int) -> None:
    if not isinstance(bits, int) or isinstance(bits, bool) or not 1 <= bits <= 8:
        raise ValueError(f"bits={bits!r} is not a width of codes: write a whole number from 1 to 8.")


def _check_codes(codes: Tensor, bits: int) -> None:
    if not isinstance(codes, Tensor):
        raise ValueError(
            f"{type(codes).__name__} is not a tensor: give codes, as a quantizer's quantize(x) returns them."
        )
    if not codes.numel():
        return
    if codes.is_floating_point() and not bool((codes == codes.round()).all()):  # NaN is not equal to itself
        raise ValueError("the codes are not whole numbers: give what a quantizer's quantize(x) returns.")
    lowest, highest = (int(bound) for bound in torch.aminmax(codes))
    end = 1 << bits
    if lowest < -(end // 2) or highest >= (end // 2 if lowest < 0 else end):
        raise ValueError(
            f"codes from {lowest} to {highest} do not fit into {bits} bits: {bits} bits hold 0 to {end - 1}, or "
            f"{-(end // 2)} to {end // 2 - 1}."
        )
