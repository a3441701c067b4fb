"""Block reconstruction (Li et al. 2021, "BRECQ", arXiv:2102.05426), with QDrop (Wei et al. 2022, arXiv:2203.05740)."""

from __future__ import annotations

from qat.ptq.base import Pass
from qat.ptq.reconstruction import Reconstruction
from qat.ptq.segment import block_segments
from qat.ptq.state import PTQState


class BRECQ(Pass):
    """Learns the rounding of weights and the step sizes of activations, block by block, against the float block's output.

    Blocks are read off the graph: a block lies between two tensors through which all data flow. With `drop`, every
    activation value stays in float with that probability while the block learns (QDrop; 0.5 in its paper).

    Differs from the papers: the error is not weighted with the Fisher information (the authors' default,
    too); weights and step sizes are learned together, as QDrop does, and not one after the other; step sizes have a learning
    rate relative to themselves; blocks need not be the authors': a chain without shortcuts is cut behind every layer; fewer
    iterations (20,000 there) at a higher learning rate (1e-3), and beta falls on a cosine.

    Args:
        iterations: Adam steps for each block.
        batch_size: images in each step.
        lr: learning rate of V.
        scale_lr: learning rate of each step size, relative to it.
        regularization: weight of AdaRound's regularizer.
        drop: 0 for BRECQ, 0.5 for QDrop.
    """

    rounds_weights = True

    def __init__(
        self,
        iterations: int = 350,
        batch_size: int = 16,
        lr: float = 1.4e-2,
        scale_lr: float = 1e-3,
        regularization: float = 0.01,
        drop: float = 0.0,
    ) -> None:
        self.reconstruction = Reconstruction(iterations, batch_size, lr, scale_lr, drop, regularization)

    def apply(self, state: PTQState) -> None:
        self.reconstruction.run(state, block_segments, "QDrop" if self.reconstruction.drop else "BRECQ")
