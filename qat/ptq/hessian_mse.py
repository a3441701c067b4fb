"""Ranges of weights with the smallest error, weighted by the inputs of the layer."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from qat.arguments import is_whole_number
from qat.functional import dequantize, quantize
from qat.nn import as_quantized
from qat.observers.search import one_by_one, search
from qat.ptq.base import Pass
from qat.ptq.side_by_side import layers_in_order
from qat.ptq.state import PTQState
from qat.ptq.unfold import unfold_inputs


class HessianMSE(Pass):
    """Gives each weight the range with the smallest sum_j H_jj (w_j - q(w_j))^2, from first to last layer.

    H = E[x x^T] over the layer's inputs in the quantized network, the matrix of GPTQ's objective (Frantar et al. 2022,
    https://arxiv.org/abs/2210.17323, section 3). Only its diagonal is used: the sum is the error of the output if the inputs
    are uncorrelated. A weight whose input is always 0 does not count; if all inputs are, the full range is used. The search
    is that of the observer MSE. Weights, and ranges of activations, stay as they are.

    Args:
        candidates: the number of fractions of the full range that are tried.
    """

    moves_weight_ranges = True

    def __init__(self, candidates: int = 100) -> None:
        if not is_whole_number(candidates):
            raise ValueError(
                f"candidates={candidates!r} is not possible: write a whole number, 1 or more, such as 100."
            )
        self.candidates = candidates

    @torch.no_grad()
    def apply(self, state: PTQState) -> None:
        for layer, inputs in layers_in_order(state, "Hessian MSE"):
            quantizer = as_quantized(layer).weight_quantizer
            if quantizer is not None and quantizer.scaled_codes:  # a floating-point format has no range to choose
                self._set_range(layer, inputs)

    def _set_range(self, layer: nn.Module, batches: list[Tensor]) -> None:
        weight, quantizer = as_quantized(layer).weight, as_quantized(layer).weight_quantizer
        assert quantizer is not None
        spec, grid = quantizer.spec, quantizer.spec.grid
        w, h = (spec.granularity.rows(t) for t in (weight, input_second_moments(layer, batches)))

        def loss(lo: Tensor, hi: Tensor) -> Tensor:
            scale, zero_point = (p[:, None] for p in spec.qparams(lo, hi))
            rounded = dequantize(quantize(w, scale, zero_point, grid.qmin, grid.qmax), scale, zero_point)
            return ((rounded - w).double().square() * h).sum(dim=1)

        quantizer.set_range(*search(spec, *torch.aminmax(w, dim=1), one_by_one(loss), self.candidates))


def input_second_moments(layer: nn.Module, batches: list[Tensor]) -> Tensor:
    """E[x^2] of the input that each weight is multiplied by: float64, the shape of the weight."""
    weight = as_quantized(layer).weight
    groups = layer.groups if isinstance(layer, nn.Conv1d | nn.Conv2d) else 1
    total, rows = torch.zeros((), dtype=torch.float64), 0
    for batch in batches:
        for x in batch.split(64):  # patches are at least as large as their image, often nine times
            inputs = unfold_inputs(layer, x)
            total = total.to(x.device) + inputs.double().square().sum(dim=0)
            rows += len(inputs)
    each = (total / rows).unflatten(0, (groups, -1))  # (groups, in)
    return each.repeat_interleave(len(weight) // groups, dim=0).reshape(weight.shape)
