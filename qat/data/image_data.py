"""The form of every data set: three splits, and the numbers needed to interpret them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from qat.data.batch_transform import BatchTransform, PadMode
from qat.data.tensor_images import Sample


class ImageDataset(Protocol):
    """A map-style dataset of uint8 (C, H, W) images with int64 labels; `__getitems__` may return a stacked batch."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Sample: ...


@dataclass(frozen=True)
class ImageData:
    """An image classification data set.

    Args:
        name: the name in the configuration, "cifar10".
        label: the name in tables and plots; says if the images are not the original ones, "cifar10 (jpeg copy)".
        classes: name of each class, in the order of the labels.
        mean, std: normalisation per channel, for images in 0..1.
        image_shape: (C, H, W).
        train, val, test: datasets of uint8 images; `val` may be empty.
        train_unaugmented: the images of `train` without augmentation; None if `train` itself augments nothing.
        crop_padding, flip, pad_mode: what `BatchTransform` does to training batches.

    Raises:
        ValueError: the fields contradict each other, or a split is empty.
    """

    name: str
    label: str
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    image_shape: tuple[int, int, int]
    train: ImageDataset
    val: ImageDataset
    test: ImageDataset
    train_unaugmented: ImageDataset | None = None
    crop_padding: int = 0
    flip: bool = False
    pad_mode: PadMode = "zeros"

    def __post_init__(self) -> None:
        channels, height, width = self.image_shape
        self.batch_transform()  # checks what it takes
        if len(self.mean) != channels:
            raise ValueError(f"mean={self.mean} has {len(self.mean)} numbers, the images have {channels} channels.")
        if not 0 <= self.crop_padding < min(height, width):
            raise ValueError(
                f"crop_padding={self.crop_padding} does not fit images of {height}x{width} pixels: "
                f"write 0 to {min(height, width) - 1}."
            )
        for split, images in {"train": self.train, "test": self.test}.items():
            if len(images) == 0:
                raise ValueError(f"the {split} split of {self.label} is empty: add images, or choose another data set.")

    @property
    def num_classes(self) -> int:
        """The number of classes."""
        return len(self.classes)

    def batch_transform(self) -> BatchTransform:
        """Build the module that turns uint8 batches of this data set into network inputs."""
        return BatchTransform(self.mean, self.std, self.crop_padding, self.flip, self.pad_mode)
