"""Well-known data sets, recognised on disk by their layout: torchvision's files, or a copy as folders of images."""

from __future__ import annotations

import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from qat.data.batch_transform import PadMode
from qat.data.decode import decode_images
from qat.data.image_data import ImageData
from qat.data.image_files import ImageFiles, data_root
from qat.data.split import Split
from qat.data.tensor_images import TensorImages


@dataclass(frozen=True)
class KnownDataset:
    """A data set that torchvision can read and download.

    Args:
        name: "cifar10"; also the name of the subfolder that may hold a copy, alone or followed by `_jpeg` or `_png`.
        title: "CIFAR-10", for messages.
        marker: a file of torchvision's layout, relative to its root.
        classes: the class folders of a copy, sorted, in the order of the labels.
        mean, std: normalisation per channel, for images in 0..1.
        image_shape: (C, H, W).
        read: (root, train) -> images, by torchvision's class with `download=True`.
    """

    name: str
    title: str
    marker: str
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    image_shape: tuple[int, int, int]
    read: Callable[[Path, bool], TensorImages]

    def load(
        self, root: str | Path | None, split: Split, *, crop_padding: int, flip: bool, pad_mode: PadMode
    ) -> ImageData:
        """Read the data set from `root`; None is the environment's QAT_DATA_DIR, else ./data.

        If the data set is missing, it is downloaded into `root`, but only if that folder or its parent exists.

        Raises:
            FileNotFoundError: the data set is missing and cannot be downloaded.
            ValueError: a copy has other classes than the data set, or an image cannot be decoded.
        """
        label, pool, test = self._find(data_root(root))
        train, val = split.train_val(len(pool))
        return ImageData(
            name=self.name,
            label=label,
            classes=self.classes,
            mean=self.mean,
            std=self.std,
            image_shape=self.image_shape,
            train=pool.select(train),
            val=pool.select(val),
            test=test.select(split.test(len(test))),
            crop_padding=crop_padding,
            flip=flip,
            pad_mode=pad_mode,
        )

    def _find(self, root: Path) -> tuple[str, TensorImages, TensorImages]:
        """The label for tables, all training images and all test images."""
        for base in (root, root / self.name):
            if (base / self.marker).is_file():
                return self.name, *self._read_with_torchvision(base)
        for base in (root, *(root / f"{self.name}{suffix}" for suffix in ("", "_jpeg", "_png"))):
            if (base / "train").is_dir() and (base / "test").is_dir():
                return self._read_copy(base)
        if not root.is_dir() and not root.absolute().parent.is_dir():
            raise FileNotFoundError(f"{self.title} is not in {root}, a folder that does not exist: {self._remedy()}")
        return self.name, *self._read_with_torchvision(root)

    def _read_with_torchvision(self, root: Path) -> tuple[TensorImages, TensorImages]:
        try:
            found = self.read(root, True), self.read(root, False)
            for images in found:
                self._check(images)
            return found
        except Exception as error:  # no network, no space, damaged files
            reason = textwrap.shorten(str(error), 200)
            raise FileNotFoundError(
                f"{self.title} is not complete in {root} and cannot be downloaded there ({reason}): {self._remedy()}"
            ) from error

    def _check(self, images: TensorImages) -> None:
        """Check what torchvision read from files that have no checksum."""
        if tuple(images.images.shape[1:]) != self.image_shape or len(images.images) != len(images.labels):
            raise ValueError(f"images of shape {tuple(images.images.shape)} with {len(images.labels)} labels")
        if not len(images.labels) or not 0 <= int(images.labels.min()) <= int(images.labels.max()) < len(self.classes):
            raise ValueError("labels outside of its classes")

    def _read_copy(self, root: Path) -> tuple[str, TensorImages, TensorImages]:
        train, test = ImageFiles.in_folder(root / "train"), ImageFiles.in_folder(root / "test")
        for files in (train, test):
            if files.classes != self.classes:
                raise ValueError(
                    f"{files.folder} has the class folders {textwrap.shorten(', '.join(files.classes), 120)}, "
                    f"{self.title} has {', '.join(self.classes)}: use data=image_folder for images of your own."
                )
        file_format = Path(train.paths[0]).suffix.lower().lstrip(".").replace("jpg", "jpeg")
        channels = self.image_shape[0]
        label = f"{self.name} ({file_format} copy)"
        return label, decode_images(train, channels, None), decode_images(test, channels, None)

    def _remedy(self) -> str:
        return (
            f"put torchvision's {self.marker} or a copy as train/<class>/*.jpg and test/<class>/*.jpg there, "
            "or set data.root= (or QAT_DATA_DIR) to the folder that has one."
        )
