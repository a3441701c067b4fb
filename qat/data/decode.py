"""Small images, decoded once into memory and cached on disk."""

from __future__ import annotations

import hashlib
import os
import warnings
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from rich.console import Console
from rich.progress import track
from safetensors import SafetensorError
from torch import Tensor

from qat.data.image_files import ImageFiles, open_image, resize_and_crop
from qat.data.tensor_images import TensorImages
from qat.files import cache_folder
from qat.reading.tensor_file import read_tensors, write_tensors

CACHE_FORMAT = 2  # raise it if the same files decode to other tensors
CHUNK = 256  # images that a thread decodes at a time


def decode_images(files: ImageFiles, channels: int, image_size: int | None) -> TensorImages:
    """Decode all images of `files`, or load them from the cache.

    Args:
        channels: 1 or 3.
        image_size: pixels per side, by `resize_and_crop`; None keeps the images as they are, which must all have one size.

    Raises:
        ValueError: an image cannot be decoded, or its size differs from the first one's; the message names the file.
    """
    cached = cache_folder() / f"{files.folder.name}-{_fingerprint(files, channels, image_size)}.safetensors"
    try:
        return TensorImages(**read_tensors(cached, needs_checksum=True))
    except FileNotFoundError:
        pass
    except (ValueError, TypeError, OSError) as error:
        warnings.warn(f"the cached images {cached} cannot be read ({error}): decoding them again.", stacklevel=2)
    images = _decode_all(files, channels, image_size)
    decoded = TensorImages(images, torch.tensor(files.labels))
    try:
        write_tensors(cached, {"images": decoded.images, "labels": decoded.labels})
    except (SafetensorError, OSError) as error:
        warnings.warn(
            f"the decoded images are not cached in {cached.parent} ({error}): set QAT_CACHE_DIR to a writable folder.",
            stacklevel=2,
        )
    return decoded


def _fingerprint(files: ImageFiles, channels: int, image_size: int | None) -> str:
    """Digest of the folder, of names, sizes and times of its files, and of how they are decoded."""
    root = str(files.folder.resolve())
    digest = hashlib.sha256(f"{CACHE_FORMAT} {channels} {image_size} {root}\n".encode())
    for path in files.paths:
        stat = os.stat(path)  # noqa: PTH116 (twice as fast as a Path, 60,000 times)
        name = path[len(str(files.folder)) :]
        digest.update(f"{name}\0{stat.st_size}\0{stat.st_mtime_ns}\n".encode(errors="surrogateescape"))
    return digest.hexdigest()[:24]


def _decode_all(files: ImageFiles, channels: int, image_size: int | None) -> Tensor:
    """All images as uint8 (N, C, H, W)."""
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
        chunks = pool.map(decode_chunk, starts)
        label = f"decoding {files.folder}"
        for _ in track(chunks, label, len(starts), console=console, transient=True, disable=not console.is_terminal):
            pass
    finally:
        pool.shutdown(cancel_futures=True)
    return torch.from_numpy(images)


def _pixels(path: str, channels: int, image_size: int | None) -> np.ndarray:
    """One image as uint8 (C, H, W)."""
    image = open_image(path, channels)
    if image_size is not None:
        image = resize_and_crop(image, image_size)
    pixels = np.asarray(image)
    return pixels[None] if channels == 1 else pixels.transpose(2, 0, 1)


def _size(pixels: np.ndarray) -> str:
    return f"{pixels.shape[2]}x{pixels.shape[1]}"
