"""Where the outputs of a weight are: transposed convolutions store their inputs first."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn


def outputs_first(layer: Any, weight: Tensor) -> Tensor:
    """The weight or its mask as [out, in / groups, ...]: a transposed convolution has [in, out / groups, ...].

    Its own inverse: from outputs first it leads back to the layer's own shape.
    """
    if not isinstance(layer, nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d):
        return weight
    return inputs_and_outputs_swapped(weight, layer.groups)


def inputs_and_outputs_swapped(weight: Tensor, groups: int) -> Tensor:
    """[in, out / groups, ...] -> [out, in / groups, ...], and back.

    >>> import torch
    >>> inputs_and_outputs_swapped(torch.zeros(4, 3, 5), 2).shape
    torch.Size([6, 2, 5])
    """
    return weight.unflatten(0, (groups, -1)).transpose(1, 2).flatten(0, 1)
