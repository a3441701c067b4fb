"""Folders of image files with one subfolder per class, and how one file becomes an image."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image
from torchvision.datasets import ImageFolder
from torchvision.transforms.v2 import functional as F

PIL_MODES = {1: "L", 3: "RGB"}


def data_root(root: str | Path | None) -> Path:
    """Where data sets are stored: `root`, else the environment's QAT_DATA_DIR, else ./data."""
    return Path(root or os.environ.get("QAT_DATA_DIR") or "data").expanduser()


@dataclass(frozen=True)
class ImageFiles:
    """The files of `folder/<class>/`, sorted by class and name.

    Args:
        classes: names of the class folders, sorted.
        paths: one path per image.
        labels: index of the class of each image.
    """

    folder: Path
    classes: tuple[str, ...]
    paths: tuple[str, ...]
    labels: tuple[int, ...]

    @classmethod
    def in_folder(cls, folder: Path) -> ImageFiles:
        """List the files that are in `folder` now.

        Raises:
            FileNotFoundError: the folder, its class folders, or the images in one of them are missing.
        """
        listing = ImageFolder(str(folder))  # reads no image; its errors name the folder or the empty class
        paths, labels = zip(*listing.samples, strict=True)
        return cls(folder, tuple(listing.classes), paths, labels)


def open_image(path: str | Path, channels: int) -> Image.Image:
    """Decode an image as grey (1 channel) or RGB (3).

    Raises:
        ValueError: the file cannot be decoded; the message names it.
    """
    try:
        with Image.open(path) as image:
            return image.convert(PIL_MODES[channels])
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(f"image {path} cannot be decoded ({error}): replace the file or remove it.") from error


def resize_and_crop(image: Image.Image, size: int, crop_share: float = 1.0) -> Image.Image:
    """Scale the shorter side to `size / crop_share`, then cut out the middle `size` x `size` pixels."""
    return F.center_crop(F.resize(image, [round(size / crop_share)]), [size])


def are_small(paths: Sequence[str], max_pixels: int) -> bool:
    """Whether all these images have at most `max_pixels` per side, according to their headers.

    Raises:
        ValueError: a header cannot be read; the message names the file.
    """
    for path in paths:
        try:
            with Image.open(path) as image:
                size = image.size
        except OSError as error:
            raise ValueError(f"image {path} cannot be decoded ({error}): replace the file or remove it.") from error
        if max(size) > max_pixels:
            return False
    return True
