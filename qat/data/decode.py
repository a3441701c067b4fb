"""Folders of small images, decoded once into memory and cached on disk."""

from __future__ import annotations

import hashlib
import os
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from rich.console import Console
from rich.progress import track
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor
from torchvision.datasets import ImageFolder
from torchvision.transforms.v2 import functional as F

from qat.data.tensor_images import TensorImages
from qat.files import cache_folder, write_atomically

CACHE_FORMAT = 1  # raise it when the same files decode to other tensors
CHUNK = 256  # images one thread decodes at a time
PIL_MODES = {1: "L", 3: "RGB"}


@dataclass(frozen=True)
class ImageFiles:
    """The files under `folder/<class>/`, sorted by class and name, with the index of each one's class.

    Raises (from `listed`):
        FileNotFoundError: the folder, its class folders, or the images in one of them are missing.
    """

    folder: Path
    classes: tuple[str, ...]
    paths: tuple[str, ...]
    labels: tuple[int, ...]

    @classmethod
    def listed(cls, folder: Path) -> ImageFiles:
        """What is in `folder` now."""
        found = ImageFolder(str(folder))  # lists only; its errors name the folder or the empty class
        paths, labels = zip(*found.samples, strict=True)
        return cls(folder, tuple(found.classes), paths, labels)


def open_image(path: str | Path, channels: int) -> Image.Image:
    """The decoded image as grey (1 channel) or RGB (3).

    Raises:
        ValueError: the file cannot be decoded; the message names it.
    """
    try:
        with Image.open(path) as image:
            return image.convert(PIL_MODES[channels])
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(f"image {path} cannot be decoded ({error}): replace the file or remove it.") from error


def resize_and_crop(image: Image.Image, size: int, crop_share: float = 1.0) -> Image.Image:
    """The middle `size` x `size` pixels after the shorter side is scaled to `size / crop_share`."""
    return F.center_crop(F.resize(image, [round(size / crop_share)]), [size])


def decode(files: ImageFiles, channels: int, image_size: int | None) -> TensorImages:
    """All images of `files`, from the cache where it has them.

    Args:
        channels: 1 or 3.
        image_size: pixels per side, by `resize_and_crop`; None takes the images as they are, if all have one size.

    Raises:
        ValueError: an image cannot be decoded, or its size differs from the first one's; the message names the file.
    """
    cached = cache_folder() / f"{files.folder.name}-{_fingerprint(files, channels, image_size)}.safetensors"
    try:
        return TensorImages(**load_file(cached))
    except FileNotFoundError:
        pass
    except (SafetensorError, OSError) as error:
        warnings.warn(f"the cached images {cached} cannot be read ({error}): decoding them again.", stacklevel=2)
    images = _decode_all(files, channels, image_size)
    decoded = TensorImages(images, torch.tensor(files.labels))
    try:
        _write(cached, {"images": decoded.images, "labels": decoded.labels})
    except (SafetensorError, OSError) as error:
        warnings.warn(
            f"the decoded images are not cached in {cached.parent} ({error}): set QAT_CACHE_DIR to a writable folder.",
            stacklevel=2,
        )
    return decoded


def _fingerprint(files: ImageFiles, channels: int, image_size: int | None) -> str:
    """Changes with the folder, the names, sizes and times of its files, and with how they are decoded."""
    root = str(files.folder.resolve())
    digest = hashlib.sha256(f"{CACHE_FORMAT} {channels} {image_size} {root}\n".encode())
    for path in files.paths:
        stat = os.stat(path)  # noqa: PTH116 (twice as fast as a Path, 60,000 times)
        name = path[len(str(files.folder)) :]
        digest.update(f"{name}\0{stat.st_size}\0{stat.st_mtime_ns}\n".encode(errors="surrogateescape"))
    return digest.hexdigest()[:24]


def _decode_all(files: ImageFiles, channels: int, image_size: int | None) -> Tensor:
    """uint8 (N, C, H, W)."""
    first = _pixels(files.paths[0], channels, image_size)
    images = np.empty((len(files.paths), *first.shape), dtype=np.uint8)

    def decode_chunk(start: int) -> None:
        for index, path in enumerate(files.paths[start : start + CHUNK], start):
            pixels = _pixels(path, channels, image_size)
            if pixels.shape != first.shape:
                raise ValueError(
                    f"image {path} is {_size(pixels)} pixels, {files.paths[0]} is {_size(first)}: "
                    "set data.image_size to bring all images to one size."
                )
            images[index] = pixels

    starts = range(0, len(files.paths), CHUNK)
    pool = ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1))
    try:
        console = Console(stderr=True)
        done = pool.map(decode_chunk, starts)
        label = f"decoding {files.folder}"
        for _ in track(done, label, len(starts), console=console, transient=True, disable=not console.is_terminal):
            pass
    finally:
        pool.shutdown(cancel_futures=True)
    return torch.from_numpy(images)


def _pixels(path: str, channels: int, image_size: int | None) -> np.ndarray:
    """uint8 (C, H, W)."""
    image = open_image(path, channels)
    if image_size is not None:
        image = resize_and_crop(image, image_size)
    pixels = np.asarray(image)
    return pixels[None] if channels == 1 else pixels.transpose(2, 0, 1)


def _size(pixels: np.ndarray) -> str:
    return f"{pixels.shape[2]}x{pixels.shape[1]}"


def _write(path: Path, tensors: dict[str, Tensor]) -> None:
    write_atomically(path, save(tensors))  # save_file would make it readable by its owner only


def is_small(files: Sequence[str], max_pixels: int) -> bool:
    """Whether these image files are all at most `max_pixels` on a side, by their headers."""
    for path in files:
        try:
            with Image.open(path) as image:
                size = image.size
        except OSError as error:
            raise ValueError(f"image {path} cannot be decoded ({error}): replace the file or remove it.") from error
        if max(size) > max_pixels:
            return False
    return True
