"""4-bit NormalFloat (Dettmers et al. 2023, https://arxiv.org/abs/2305.14314)."""

from __future__ import annotations

import torch
from torch import Tensor

from qat.observers import Observer
from qat.quantizers.codebook import Codebook
from qat.spec import QuantSpec

NORMAL_FLOAT = (
    *(-1.0, -0.6961928, -0.52507305, -0.3949175, -0.28444138, -0.18477343, -0.09105004, 0.0),
    *(0.0795803, 0.1609302, 0.2461123, 0.33791524, 0.44070983, 0.562617, 0.72295684, 1.0),
)
"""The 16 levels of appendix E: means of neighbouring quantiles of a normal distribution, for the range -1 to 1."""


class NF4(Codebook):
    """The 16 levels of NF4, equally likely for normally distributed weights. The scale learns as in LSQ.

    Differs from the paper: levels are rounded to multiples of 1/127, so that they are int8 codes; the scale starts from the
    observer (the paper's is the largest |w| of 64 weights: MinMax, per_group with group_size: 64) and learns; the scale
    itself is not quantized.

    Raises:
        ValueError: an activation, a grid that is not symmetric and signed, or bits other than 4.
    """

    normal_float: Tensor

    def __init__(self, spec: QuantSpec, shape: tuple[int, ...] = (), observer: Observer | None = None) -> None:
        super().__init__(spec, shape, observer)
        self.require_weight()
        self.register_buffer(
            "normal_float", torch.round(127 * torch.tensor(NORMAL_FLOAT, dtype=torch.float32)), persistent=False
        )

    def possible_bits(self) -> tuple[int, ...]:
        return (4,)

    def levels(self) -> Tensor:
        return self.normal_float
