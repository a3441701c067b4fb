"""Large images, decoded on access."""

from __future__ import annotations

from dataclasses import replace

import torch
from PIL.Image import Image
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms.v2 import RandomResizedCrop
from torchvision.transforms.v2 import functional as F

from qat.data.image_files import ImageFiles, open_image, resize_and_crop
from qat.data.tensor_images import Sample

EVAL_CROP = 0.875  # share of the shorter side that evaluation uses: 224 of 256 pixels


class LazyImages(Dataset[Sample]):
    """uint8 (C, image_size, image_size) images, decoded on access, which the workers of a DataLoader should do.

    Args:
        files: the images.
        image_size: pixels per side.
        channels: 1 (grey) or 3 (RGB).
        random_crop: True takes a random-resized crop (torchvision's defaults) from torch's global random state, for
            training; False takes the middle 87.5 %.

    Raises (on access):
        ValueError: an image cannot be decoded; the message names the file.
    """

    def __init__(self, files: ImageFiles, image_size: int, channels: int = 3, random_crop: bool = False) -> None:
        self.files = files
        self.image_size = image_size
        self.channels = channels
        self._random_crop = RandomResizedCrop([image_size, image_size]) if random_crop else None

    def __len__(self) -> int:
        return len(self.files.paths)

    def __getitem__(self, index: int) -> Sample:
        image = open_image(self.files.paths[index], self.channels)
        return F.pil_to_tensor(self._crop(image)), torch.tensor(self.files.labels[index])

    def select(self, indices: Tensor) -> LazyImages:
        """The images at `indices`, int64 (M,), in that order, without random crops."""
        paths = tuple(self.files.paths[i] for i in indices.tolist())
        labels = tuple(self.files.labels[i] for i in indices.tolist())
        return LazyImages(replace(self.files, paths=paths, labels=labels), self.image_size, self.channels)

    def randomly_cropped(self) -> LazyImages:
        """The same images with random crops, for training."""
        return LazyImages(self.files, self.image_size, self.channels, random_crop=True)

    def _crop(self, image: Image) -> Image:
        return self._random_crop(image) if self._random_crop else resize_and_crop(image, self.image_size, EVAL_CROP)
