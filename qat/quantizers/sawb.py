"""Statistics-aware weight binning, of PACT-SAWB (Choi et al. 2018, https://arxiv.org/abs/1807.06964)."""

from __future__ import annotations

from torch import Tensor

from qat.quantizers.weight_statistics import WeightStatisticsQuantizer

COEFFICIENTS = {2: (2.5525, -1.6403), 3: (6.9529, -6.3052), 4: (11.785, -11.747), 5: (16.589, -17.265)}
"""bits -> (c1, c2), fitted for narrow grids; `tests/oracles/sawb.py` repeats the fit."""


class SAWB(WeightStatisticsQuantizer):
    """The range [-hi, hi] with the least squared error for a weight with these moments: hi = c1 * sqrt(E[w^2]) + c2 * E|w|,
    scale = hi / qmax. PACT is its partner for activations.

    Gradient: straight-through inside the range, 0 on its bounds and beyond; none through the statistics.

    Differs from the paper: c1 and c2 are fitted anew, by its method, for narrow grids, which have a code at 0 (the paper's
    2-bit grid has four levels and none at 0), and on five of its six distributions, without von Mises; hi is at
    least E|w|; statistics are those of the weights that share a scale.

    Raises:
        ValueError: an activation, a grid that is not symmetric and signed, or bits outside 2..5.
    """

    idempotent = False

    def _build(self) -> None:
        super()._build()
        self.require_bits(4, 2, 3, 5)

    def scale_of(self, rows: Tensor) -> Tensor:
        c1, c2 = COEFFICIENTS[self.spec.grid.bits]
        exact = rows.double()  # squares of large weights overflow float32
        mean, rms = exact.abs().mean(dim=1), exact.square().mean(dim=1).sqrt()
        hi = (c1 * rms + c2 * mean).maximum(mean)
        return (hi / self.spec.grid.qmax).float()

    def fake_quantize(self, x: Tensor) -> Tensor:
        return self.round_to_grid(x, self.update_scale(x.detach()))
