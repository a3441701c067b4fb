"""One width for a while: stages of progressive quantization."""

from __future__ import annotations

from torch import nn

from qat.quantizers import Mode
from qat.transform.mode import quantizers

FLOAT = 32
"""Bits of a stage in which nothing is rounded."""


def set_bits(model: nn.Module, bits: int | None) -> None:
    """Every quantizer rounds to max(bits, those of the policy); FLOAT: none rounds; None: as the policy says. In place.

    Whose grid has changed has no range any more: `calibrate` gives it one. After FLOAT all have none, because the network
    has learned without them. Quantizers with levels of their own (`supports_other_bits` is False) keep them.
    """
    was_float = bits_in_force(model) == FLOAT
    for quantizer in quantizers(model).values():
        quantizer.mode = Mode.OFF if bits == FLOAT else Mode.QUANTIZE
        if bits != FLOAT:
            quantizer.set_bits(bits or 0)
            if was_float:
                quantizer.forget_range()


def bits_in_force(model: nn.Module) -> int | None:
    """What `set_bits` was called with last, as far as it matters: None where every quantizer is as the policy says."""
    found = quantizers(model).values()
    if found and all(quantizer.mode is Mode.OFF for quantizer in found):
        return FLOAT
    return max(
        (q.spec.grid.bits for q in found if q.supports_other_bits and q.spec.grid != q.policy_grid), default=None
    )
