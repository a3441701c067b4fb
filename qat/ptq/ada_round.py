"""AdaRound (Nagel et al. 2020, "Up or down? Adaptive rounding for post-training quantization", arXiv:2004.10568)."""

from __future__ import annotations

from qat.ptq.base import Pass
from qat.ptq.reconstruction import Reconstruction
from qat.ptq.segment import layer_segments
from qat.ptq.state import PTQState

POSITIONS = 32
"""Positions of the layer's output in a step, for each image of the batch."""


class AdaRound(Pass):
    """Learns whether each weight is rounded up or down, layer by layer.

    Minimises |f(W x) - f(W~ x^)|^2 plus regularizer (eq. 25): f is the BatchNorm and activation function behind the layer, x
    the float network's input, x^ that of the quantized layers before it. Afterwards the layer's weight lies on its grid.

    Differs from the paper: fewer iterations (10,000 there) at a higher learning rate (Adam's default of 1e-3 there), beta falls
    on a cosine, BatchNorm is not folded, and a step draws positions of the layer's output instead of whole images.

    Args:
        iterations: Adam steps for each layer.
        batch_size: images in each step; of a convolution, 32 positions for each, drawn from all images.
        lr: learning rate of V.
        regularization: lambda of eq. 21.
    """

    rounds_weights = True

    def __init__(
        self, iterations: int = 500, batch_size: int = 32, lr: float = 1e-2, regularization: float = 0.01
    ) -> None:
        self.reconstruction = Reconstruction(
            iterations, batch_size, lr, regularization=regularization, positions=POSITIONS
        )

    def apply(self, state: PTQState) -> None:
        self.reconstruction.run(state, layer_segments, "AdaRound")
