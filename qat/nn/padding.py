"""The padding of convolutions as numbers."""

from __future__ import annotations

from torch import nn

Convolution = nn.Conv1d | nn.Conv2d | nn.Conv3d | nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d


def explicit_padding(conv: Convolution) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Padding (before, after) of every spatial axis; padding="same" puts the odd element after, as torch does."""
    if isinstance(conv.padding, str):
        axes = len(conv.kernel_size)
        if conv.padding == "valid":
            return (0,) * axes, (0,) * axes
        total = [d * (k - 1) for d, k in zip(conv.dilation, conv.kernel_size, strict=True)]
        return tuple(t // 2 for t in total), tuple(t - t // 2 for t in total)
    return tuple(conv.padding), tuple(conv.padding)


def padding_of_every_side(conv: Convolution) -> list[int]:
    """The padding in the order of `F.pad`: before and after the last axis, then the last but one, ..."""
    sides = zip(*explicit_padding(conv), strict=True)
    return [side for both in reversed(list(sides)) for side in both]


def transposed_padding(conv: Convolution) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Padding (before, after) of the convolution that computes a transposed one, on its input with zeros inserted."""
    options = zip(conv.kernel_size, conv.dilation, explicit_padding(conv)[0], conv.output_padding, strict=True)
    sides = [(d * (k - 1) - p, d * (k - 1) - p + more) for k, d, p, more in options]
    return tuple(before for before, _ in sides), tuple(after for _, after in sides)
