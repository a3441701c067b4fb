"""Binary weights of XNOR-Net (Rastegari et al. 2016, https://arxiv.org/abs/1603.05279)."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from qat.functional import clip, with_gradient_of
from qat.observers import Observer
from qat.quantizers.weight_statistics import WeightStatisticsQuantizer
from qat.spec import QuantSpec


class Binary(WeightStatisticsQuantizer):
    """Weights -scale and scale, scale = mean|w| (eq. 6): one bit a weight. sign(0) is 1.

    Gradient: that of scale * sign(w), where the derivative of sign is taken as 1 for |w| < 1 and 0 elsewhere:
    dw_i = g_i * scale * [|w_i| < 1] + sign(w_i) * mean_j(g_j * sign(w_j)).

    Differs from the paper: its formula (and the authors' code) has only the term j = i of the mean, the derivative has all of
    them; activations stay as the policy says. The codes -1 and 1 are those of a narrow 2-bit grid, so that convert and
    export need nothing new; a file stores two bits a weight.

    Raises:
        ValueError: an activation, a grid that is not symmetric and signed, or bits other than 2.
    """

    def __init__(self, spec: QuantSpec, shape: tuple[int, ...] = (), observer: Observer | None = None) -> None:
        super().__init__(spec, shape, observer)
        self.require_bits(2)
        self.spec = replace(spec, grid=replace(spec.grid, narrow=True))

    def scale_of(self, rows: Tensor) -> Tensor:
        return rows.abs().mean(dim=1)

    def fake_quantize(self, x: Tensor) -> Tensor:
        granularity, shape = self.spec.granularity, tuple(x.shape)
        view = granularity.view(x.float())
        scale = granularity.broadcastable(self.update_scale(x), shape)
        one = torch.ones((), dtype=torch.float32, device=x.device)
        signs = with_gradient_of(self._codes(view), clip(view, -one, one))
        return (signs * scale).to(x.dtype).reshape(shape)

    def nearest_code(self, average: Tensor) -> Tensor:
        return self._codes(average)

    def _codes(self, x: Tensor) -> Tensor:
        return torch.where(x >= 0, 1.0, -1.0).float()
