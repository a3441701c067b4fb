"""A learned codebook (Han et al. 2016, "Deep compression", https://arxiv.org/abs/1510.00149)."""

from __future__ import annotations

from math import prod

import numpy as np
import torch
from torch import Tensor, nn

from qat.functional import clamp_straight_through, scale_gradient, with_gradient_of
from qat.observers import Observer
from qat.quantizers.codebook import Codebook
from qat.quantizers.mode import Mode
from qat.spec import QParams, QuantSpec


class KMeans(Codebook):
    """2^bits levels, found by k-means among the weights and then learned. The gradient of a level is the sum over its weights,
    times 1 / sqrt(N * qmax), with N the number of weights of the layer and qmax that of a uniform grid of as many bits. All
    channels or groups share the levels; each has its own scale.

    The parameter `codebook` holds the levels divided by 127, in -1..1.

    Differs from the paper: it sums without the factor; levels are rounded to whole codes in -127..127, straight-through, so
    that they are int8 codes; weights are assigned to levels anew in each step; the float weights train, too; nothing
    is pruned or entropy-coded. If a range is set by hand, without observing a weight, the levels start evenly spaced.

    Raises:
        ValueError: an activation, or a grid that is not symmetric and signed.
    """

    def __init__(self, spec: QuantSpec, shape: tuple[int, ...] = (), observer: Observer | None = None) -> None:
        super().__init__(spec, shape, observer)
        self.require_weight()
        self.codebook = nn.Parameter(torch.linspace(-1.0, 1.0, 2**self.bits, dtype=torch.float32))
        self._gradient_scale = (prod(shape) * self.uniform_qmax) ** -0.5
        self._observed_weight: Tensor | None = None

    def levels(self) -> Tensor:
        """127 * codebook, rounded and sorted; a level that overtakes another changes places with it."""
        real = 127.0 * scale_gradient(clamp_straight_through(self.codebook, -1.0, 1.0), self._gradient_scale)
        return with_gradient_of(torch.round(real), real).sort().values

    @torch.no_grad()
    def keep_zero(self) -> None:
        """Move the level nearest to zero there."""
        self.codebook[self.codebook.abs().argmin()] = 0.0

    def forward(self, x: Tensor) -> Tensor:
        if self.mode is Mode.OBSERVE and not self.ready:
            self._observed_weight = x.detach().float()
        return super().forward(x)

    def set_qparams(self, qparams: QParams) -> None:
        """Start from this scale; if a weight was observed, cluster its values, divided by the scale, into levels."""
        super().set_qparams(qparams)
        if self._observed_weight is not None:
            self._cluster(self._observed_weight)
            self._observed_weight = None

    def _cluster(self, weight: Tensor) -> None:
        """Run k-means from evenly spaced levels (linear initialization, the paper's best).

        If the weight has fewer distinct values than levels, each value replaces the level nearest to it.
        """
        granularity, shape = self.spec.granularity, tuple(weight.shape)
        v = granularity.view(weight) / granularity.broadcastable(self.qparams().scale, shape)
        values = v.div(127.0).clamp(-1.0, 1.0).reshape(-1, 1).double().cpu().numpy()
        distinct = np.unique(values)
        if len(distinct) < 2**self.bits:
            levels = np.linspace(-1.0, 1.0, 2**self.bits)
            free = levels.copy()
            for value in distinct:
                nearest = np.nanargmin(np.abs(free - value))
                levels[nearest], free[nearest] = value, np.nan
        else:
            from sklearn.cluster import KMeans as Clustering  # takes a second to import

            start = np.linspace(values.min(), values.max(), 2**self.bits)[:, None]
            levels = Clustering(2**self.bits, init=start, n_init=1).fit(values).cluster_centers_[:, 0]
        with torch.no_grad():
            self.codebook.copy_(torch.from_numpy(np.sort(levels)))
