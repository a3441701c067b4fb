"""Images held in memory as uint8: the fastest data set is one that never decodes anything."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import torch
from torch import Tensor
from torch.utils.data import Dataset, default_collate

Sample: TypeAlias = tuple[Tensor, Tensor]
"""One image, uint8 (C, H, W), and its label, int64 (); or a batch of them, (N, C, H, W) and (N,)."""


class TensorImages(Dataset[Sample]):
    """Images and labels as two tensors.

    Args:
        images: uint8 (N, C, H, W), 0 is black.
        labels: int64 (N,), the index of each image's class.

    Raises:
        ValueError: a dtype or shape is not as above, or the two lengths differ.

    >>> images = TensorImages(torch.zeros(5, 3, 8, 8, dtype=torch.uint8), torch.arange(5))
    >>> batch, labels = images.__getitems__([4, 0])
    >>> batch.shape, labels
    (torch.Size([2, 3, 8, 8]), tensor([4, 0]))
    """

    def __init__(self, images: Tensor, labels: Tensor) -> None:
        if images.dtype != torch.uint8 or images.ndim != 4:
            raise ValueError(
                f"images is {images.dtype} {tuple(images.shape)}: TensorImages takes torch.uint8 (N, C, H, W)."
            )
        if labels.dtype != torch.int64 or labels.shape != images.shape[:1]:
            raise ValueError(
                f"labels is {labels.dtype} {tuple(labels.shape)}: "
                f"{len(images)} images take torch.int64 labels of shape ({len(images)},)."
            )
        self.images = images
        self.labels = labels

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Sample:
        return self.images[index], self.labels[index]

    def __getitems__(self, indices: Sequence[int]) -> Sample:
        """A whole batch at once, already stacked: uint8 (N, C, H, W) and int64 (N,)."""
        rows = torch.as_tensor(indices, dtype=torch.int64)
        return self.images[rows], self.labels[rows]

    def select(self, indices: Tensor) -> TensorImages:
        """The images at `indices`, int64 (M,), in that order, copied so that the rest can be freed."""
        return TensorImages(self.images[indices], self.labels[indices])


def collate(samples: Sample | list[Sample]) -> Sample:
    """The `collate_fn` for every image data set: stack a list of samples; pass on a batch that is already stacked."""
    if isinstance(samples, tuple):
        return samples
    images, labels = default_collate(samples)
    return images, labels
