"""Folders of image files with one subfolder per class, and how one file becomes an image."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

from PIL import Image
from torchvision.datasets import ImageFolder
from torchvision.transforms.v2 import functional as F

from qat.arguments import as_path

PIL_MODES = {1: "L", 3: "RGB"}
FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
"""What an image may be, whatever its name says: some other formats are programs, which Pillow hands to an interpreter."""
MAX_PIXELS = 1 << 26
"""Pixels that an image may have: it takes up to seven bytes of memory for each while it is decoded."""
_large_image = threading.Lock()
"""Held while an image with more than a sixteenth of that is decoded: only one at a time is."""


def data_root(root: str | Path | None) -> Path:
    """Where data sets are stored: `root`, else the environment's QAT_DATA_DIR, else ./data."""
    return as_path(os.environ.get("QAT_DATA_DIR") or "data" if root in (None, "") else root, "root")


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
        try:
            listing = ImageFolder(str(folder))  # reads no image
        except FileNotFoundError as error:
            if error.errno is not None:
                raise
            found = str(error).partition(". Supported")[0].rstrip(".")
            raise FileNotFoundError(
                f"{folder} is not a folder with images by class ({found}): give each class a folder with images in it."
            ) from error
        paths, labels = zip(*listing.samples, strict=True)
        return cls(folder, tuple(listing.classes), paths, labels)


def open_image(path: str | Path, channels: int) -> Image.Image:
    """Decode an image as grey (1 channel) or RGB (3).

    Raises:
        ValueError: the file cannot be decoded; the message names it.
    """
    with _opened(path) as image:
        is_large = image.width * image.height > MAX_PIXELS // 16
        with _large_image if is_large else nullcontext():
            return image.convert(PIL_MODES[channels])


@contextmanager
def _opened(path: str | Path) -> Iterator[Image.Image]:
    """An image whose header was read; inside the `with` block, every error is the file's fault.

    Raises:
        ValueError: it cannot be decoded; the message names it.
    """
    try:
        with Image.open(path, formats=FORMATS) as image:
            if image.width * image.height > MAX_PIXELS:
                raise ValueError(f"it has {image.width}x{image.height} pixels, more than {MAX_PIXELS:,}")
            yield image
    except Exception as error:  # Pillow raises whatever its decoders run into
        if isinstance(error, FileNotFoundError | PermissionError):
            raise
        found = str(error) or type(error).__name__
        raise ValueError(f"image {path} cannot be decoded ({found}): replace the file or remove it.") from error


def resize_and_crop(image: Image.Image, size: int, crop_share: float = 1.0) -> Image.Image:
    """Scale the shorter side to `size / crop_share`, then cut out the middle `size` x `size` pixels."""
    return F.center_crop(F.resize(image, [round(size / crop_share)]), [size])


def are_small(paths: Sequence[str], max_pixels: int) -> bool:
    """Whether all these images have at most `max_pixels` per side, according to their headers.

    Raises:
        ValueError: a header cannot be read; the message names the file.
    """
    for path in paths:
        with _opened(path) as image:
            size = image.size
        if max(size) > max_pixels:
            return False
    return True
