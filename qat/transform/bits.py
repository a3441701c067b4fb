"""Temporary widths for all quantizers: the stages of progressive quantization."""

from __future__ import annotations

from torch import nn

from qat.arguments import check_count
from qat.quantizers import Mode
from qat.transform.mode import quantizers

FLOAT = 32
"""The bits of a stage in which nothing is rounded."""


def set_bits(model: nn.Module, bits: int | None) -> None:
    """Make every quantizer round to max(bits, the bits of its policy). In place.

    A quantizer loses its range if its grid changes; `calibrate` gives it a new one. After FLOAT all ranges are lost, because
    the network has learned without quantizers. Quantizers with levels of their own (`supports_other_bits` is False) keep
    them.

    Args:
        bits: a width; FLOAT: nothing is rounded; None: the bits of the policy.

    Raises:
        ValueError: `model` is not a network, or `bits` is not a width.
    """
    if bits is not None:
        check_count("bits", bits)
    was_float = bits_in_force(model) == FLOAT
    for quantizer in quantizers(model).values():
        quantizer.mode = Mode.OFF if bits == FLOAT else Mode.QUANTIZE
        if bits != FLOAT:
            quantizer.set_bits(bits or 0)
            if was_float:
                quantizer.forget_range()


def bits_in_force(model: nn.Module) -> int | None:
    """The bits that `set_bits` set last; None if every quantizer has the bits of the policy."""
    found = quantizers(model).values()
    if found and all(quantizer.mode is Mode.OFF for quantizer in found):
        return FLOAT
    return max(
        (q.spec.grid.bits for q in found if q.supports_other_bits and q.spec.grid != q.policy_grid), default=None
    )
