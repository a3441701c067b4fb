"""First ranges of tensors that were all zeros in calibration: heads and residual branches that are initialized to zero."""

from __future__ import annotations

from collections.abc import Collection, Iterator

import torch
from torch import Tensor, nn

from qat.nn import channel_axis, quantized_weights
from qat.quantizers import Quantizer
from qat.transform.mode import quantizers


def guess_ranges(model: nn.Module, empty: Collection[Quantizer]) -> None:
    """Give quantizers that saw only zeros the range that their tensors will probably need once they are trained. In place.

    A weight gets that of a layer of its size as torch.nn initializes it, 1 / sqrt(fan_in). An activation gets the median of the
    other activations' ranges, or 1 if there are none. The scale 1 instead would round the first thousands of updates to 0.
    """
    for weight, axis, quantizer in _weights(model):
        if quantizer in empty:
            fan_in = weight.numel() // weight.shape[axis]
            _set_range(quantizer, fan_in**-0.5)
    activations = [q for q in quantizers(model).values() if not q.is_weight and not q.is_dynamic]
    known = [_largest(q) for q in activations if q not in empty and q.ready and not q.passes]
    usual = float(torch.stack(known).median()) if known else 1.0
    for quantizer in activations:
        if quantizer in empty:
            _set_range(quantizer, usual)


def _weights(model: nn.Module) -> Iterator[tuple[Tensor, int, Quantizer]]:
    """Every quantized weight, the axis of its outputs, and its quantizer."""
    for module in model.modules():
        for _, weight, quantizer in quantized_weights(module):
            yield weight, channel_axis(module), quantizer


def _set_range(quantizer: Quantizer, largest: float) -> None:
    bound = torch.full((quantizer.n_qparams,), largest, device=quantizer.zero_point.device)
    quantizer.set_range(-bound, bound)


def _largest(quantizer: Quantizer) -> Tensor:
    """The largest magnitude that an activation can have: a scalar."""
    ends = torch.tensor([-torch.inf, torch.inf], device=quantizer.zero_point.device)
    return quantizer.dequantize(quantizer.nearest_code(ends)).abs().max()
