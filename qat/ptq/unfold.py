"""The inputs of a layer as the rows of a matrix product."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from qat.nn.padding import padding_of_every_side

UNFOLDED = (nn.Linear, nn.Conv1d, nn.Conv2d)
"""The layers whose outputs are products with rows of inputs."""


def unfold_inputs(layer: nn.Module, x: Tensor) -> Tensor:
    """For each output position, the inputs that weights are multiplied with: (rows, inputs of all groups)."""
    if isinstance(layer, nn.Linear):
        return x.reshape(-1, x.shape[-1])
    assert isinstance(layer, nn.Conv1d | nn.Conv2d)
    padded = F.pad(x, padding_of_every_side(layer), "constant" if layer.padding_mode == "zeros" else layer.padding_mode)
    flat = isinstance(layer, nn.Conv1d)  # unfolded as images of one row
    options = [(1, p[0]) if flat else tuple(p) for p in (layer.kernel_size, layer.dilation, layer.stride)]
    columns = F.unfold(padded.unsqueeze(2) if flat else padded, options[0], options[1], 0, options[2])
    return columns.transpose(1, 2).flatten(0, 1)
