"""From uint8 batches to network inputs, on the device: augmentation, then normalisation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from qat.arguments import check_flag, is_number, is_whole_number
from qat.messages import shown

PadMode = Literal["zeros", "reflect"]


class BatchTransform(nn.Module):
    """uint8 (N, C, H, W) in 0..255 -> float32 (N, C, H, W), `(x / 255 - mean) / std` per channel.

    In train mode every image is first shifted (a random H x W window of the padded image) and flipped left-right with
    probability 1/2. Random numbers come from the given generator, else from the global one of the images' device. The result
    is channels last in memory, the faster order for convolutions, which pass it on to the following layers.

    Args:
        mean, std: one number per channel, for images in 0..1.
        crop_padding: pixels of padding on each side before the random crop; 0 does not crop.
        flip: whether to flip.
        pad_mode: "zeros" pads with black (as torchvision's RandomCrop does), "reflect" mirrors the image at its edge.

    Raises:
        ValueError: `mean` and `std` differ in length, a `std` is not positive, an option is of another kind or
            out of range.

    >>> transform = BatchTransform(mean=[0.5], std=[0.25]).eval()
    >>> transform(torch.tensor([0, 51, 255], dtype=torch.uint8).reshape(1, 1, 1, 3)).flatten()
    tensor([-2.0000, -1.2000,  2.0000])
    """

    scale: Tensor
    shift: Tensor

    def __init__(
        self,
        mean: Sequence[float],
        std: Sequence[float],
        crop_padding: int = 0,
        flip: bool = False,
        pad_mode: PadMode = "zeros",
    ) -> None:
        super().__init__()
        check_normalisation(mean, std)
        if not is_whole_number(crop_padding, lowest=0):
            raise ValueError(
                f"crop_padding={shown(crop_padding)} is not possible: write a number of pixels, or 0 for no random crop."
            )
        if pad_mode not in get_args(PadMode):
            raise ValueError(f"pad_mode={shown(pad_mode)} is unknown: write 'zeros' or 'reflect'.")
        check_flag("flip", flip)
        self.crop_padding = crop_padding
        self.flip = flip
        self.pad_mode = pad_mode
        # (x / 255 - mean) / std as one multiply and one add
        mean64, std64 = torch.tensor(mean, dtype=torch.float64), torch.tensor(std, dtype=torch.float64)
        self.register_buffer("scale", (1 / (255 * std64)).float().view(-1, 1, 1), persistent=False)
        self.register_buffer("shift", (-mean64 / std64).float().view(-1, 1, 1), persistent=False)

    def forward(self, images: Tensor, generator: Generator | None = None) -> Tensor:
        if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != len(self.scale):
            raise ValueError(
                f"images is {images.dtype} {tuple(images.shape)}: "
                f"BatchTransform takes torch.uint8 (N, {len(self.scale)}, H, W), not yet normalised."
            )
        if self.training and self.crop_padding:
            images = random_crop(images, self.crop_padding, self.pad_mode, generator)
        if self.training and self.flip:
            images = random_flip(images, generator)
        return images.to(self.scale.dtype, memory_format=torch.channels_last).mul_(self.scale).add_(self.shift)

    def extra_repr(self) -> str:
        return f"crop_padding={self.crop_padding}, flip={self.flip}, pad_mode={self.pad_mode!r}"


def random_crop(images: Tensor, padding: int, pad_mode: PadMode, generator: Generator | None = None) -> Tensor:
    """Shift each image by up to `padding` pixels each way: (N, C, H, W) -> (N, C, H, W)."""
    n, _, height, width = images.shape
    if pad_mode == "reflect":
        rows = _reflected_indices(height, padding, images.device)
        columns = _reflected_indices(width, padding, images.device)
        padded = images.index_select(2, rows).index_select(3, columns)
    else:
        padded = F.pad(images, [padding] * 4)
    windows = padded.unfold(2, height, 1).unfold(3, width, 1)  # (N, C, 2p+1, 2p+1, H, W), a view
    top, left = torch.randint(2 * padding + 1, (2, n), device=images.device, generator=generator)
    return windows[torch.arange(n, device=images.device), :, top, left]


def random_flip(images: Tensor, generator: Generator | None = None) -> Tensor:
    """Mirror each image of (N, C, H, W) left-right with probability 1/2."""
    flipped = torch.rand(len(images), device=images.device, generator=generator) < 0.5
    return torch.where(flipped.view(-1, 1, 1, 1), images.flip(3), images)


def check_normalisation(mean: Sequence[float], std: Sequence[float]) -> None:
    """Check that `mean` and `std` have one number per channel and every std is positive.

    Raises:
        ValueError: they do not.
    """
    for name, numbers in {"mean": mean, "std": std}.items():
        if isinstance(numbers, str) or not isinstance(numbers, Sequence) or not all(map(is_number, numbers)):
            raise ValueError(f"{name}={shown(numbers)} is not possible: write one number per channel, as [0.5].")
    if len(mean) != len(std):
        raise ValueError(
            f"mean={tuple(mean)} and std={tuple(std)} differ in length: write one number per channel in both."
        )
    if not all(value > 0 for value in std):
        raise ValueError(f"std={tuple(std)} must be positive in every channel: write 1.0 to leave a channel unscaled.")


def _reflected_indices(size: int, padding: int, device: torch.device) -> Tensor:
    """Indices of a row of `size` pixels with `padding` mirrored ones on both sides: size 4, padding 2 -> 2 1 0 1 2 3 2 1."""
    last = size - 1
    return last - (last - torch.arange(-padding, size + padding, device=device).abs()).abs()
