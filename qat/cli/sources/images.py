"""Images of a known data set or a folder as inputs of a model."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

import qat.data
from qat.cli.errors import UsageError
from qat.cli.sources.libraries import IMAGENET, Preprocessing
from qat.cli.sources.model import Model
from qat.data.image_files import ImageFiles, open_image, resize_and_crop
from qat.data.lazy_images import EVAL_CROP

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm", ".tif", ".tiff", ".gif")
SEED = 0
Pairs = Callable[[], Iterator[tuple[Tensor, Tensor | None]]]
"""Gives inputs and labels, anew with each call."""


class Wanted(NamedTuple):
    """Images that a model takes. channels, size: None if they are not known."""

    channels: int | None
    size: int | None
    preprocessing: Preprocessing | None


@dataclass
class Images:
    """Batches for training and for tests, the number of classes (None: no labels), and what is to be said."""

    train: Pairs
    test: Pairs
    classes: int | None
    same: bool = False
    notes: list[str] = field(default_factory=list)


def wanted(model: Model, size: int | None) -> Wanted:
    """What a model takes, as far as it says. size: what the command line says."""
    example = model.example
    values = (
        list(example.values()) if isinstance(example, dict) else example if isinstance(example, tuple) else [example]
    )
    image = next((x for x in values if isinstance(x, Tensor) and x.ndim == 4), None)
    channels = None if image is None else int(image.shape[1])
    says_size = model.preprocessing is not None or model.path is not None  # an example alone may be one of many sizes
    fixed = int(image.shape[-1]) if image is not None and image.shape[-1] > 1 and says_size else None
    return Wanted(channels, size or fixed, model.preprocessing)


def open_images(text: str, want: Wanted, batch: int) -> Images:
    """The images of a known data set, or of a folder: with train/ and test/, with a folder a class, or without either.

    Raises:
        FileNotFoundError, ValueError: they are not there, or cannot be decoded.
    """
    if text in ("digits", "mnist", "cifar10"):
        return _of_image_data(getattr(qat.data, text)(), want, batch)
    root = Path(text).expanduser()
    if (root / "train").is_dir():
        size = want.size or (want.preprocessing.size if want.preprocessing else None)
        data = qat.data.image_folder(root=root, image_size=size, channels=want.channels or 3, **_statistics(want))
        return _of_image_data(data, want, batch)
    return _of_files(root, want, batch)


def _statistics(want: Wanted) -> dict[str, Any]:
    known = want.preprocessing
    return {} if known is None or len(known.mean) != (want.channels or 3) else {"mean": known.mean, "std": known.std}


def _of_image_data(data: qat.data.ImageData, want: Wanted, batch: int) -> Images:
    transform = data.batch_transform().eval()
    channels, height, _ = data.image_shape
    notes = []
    if data.label != data.name:
        notes.append(f"{data.label}: a copy, not the original files")
    if want.channels not in (None, channels):
        notes.append(f"images of {channels} channels are given to a network of {want.channels}")
    if want.size not in (None, height):
        notes.append(f"images of {height} pixels are scaled to {want.size}")

    def pairs(images: Any, order: Tensor) -> Iterator[tuple[Tensor, Tensor | None]]:
        for rows in order.split(batch):
            chosen = [images[i] for i in rows.tolist()]
            x = transform(torch.stack([image for image, _ in chosen]))
            yield _fitted(x, want), torch.stack([torch.as_tensor(label) for _, label in chosen])

    train = data.train_unaugmented or data.train
    generator = torch.Generator().manual_seed(SEED)
    orders = torch.randperm(len(train), generator=generator), torch.randperm(len(data.test), generator=generator)
    return Images(lambda: pairs(train, orders[0]), lambda: pairs(data.test, orders[1]), data.num_classes, notes=notes)


def _fitted(x: Tensor, want: Wanted) -> Tensor:
    """Images of other channels and sizes."""
    if want.channels not in (None, x.shape[1]):
        if x.shape[1] != 1 and want.channels != 1:
            raise UsageError(f"the images have {x.shape[1]} channels, the model takes {want.channels}: give others.")
        x = (
            x.mean(1, keepdim=True)
            if want.channels == 1
            else x.expand(-1, int(want.channels or 1), -1, -1).contiguous()
        )
    if want.size not in (None, x.shape[-1]):
        x = F.interpolate(x, size=(int(want.size or 1),) * 2, mode="bilinear", antialias=True)
    return x


def _of_files(root: Path, want: Wanted, batch: int) -> Images:
    """A folder of images, in folders by class or in none. Every second batch is for tests."""
    if any(path.is_dir() for path in root.iterdir()):
        files = ImageFiles.in_folder(root)
        paths, labels, classes = files.paths, torch.tensor(files.labels), len(files.classes)
    else:
        paths = tuple(str(path) for path in sorted(root.iterdir()) if path.suffix.lower() in SUFFIXES)
        labels, classes = None, None
    if not paths:
        raise UsageError(f"{root} has no images: give a folder with some, or with a folder for each class.")
    preprocessing = want.preprocessing or Preprocessing(want.size or 224)
    size, channels = want.size or preprocessing.size, want.channels or 3
    known = (preprocessing.mean, preprocessing.std)
    mean, std = known if len(known[0]) == channels else ((0.5,) * channels, (0.5,) * channels)
    transform = qat.data.BatchTransform(mean, std).eval()
    order = torch.randperm(len(paths), generator=torch.Generator().manual_seed(SEED))
    parts = (order[::2], order[1::2]) if len(order) > 1 else (order, order)

    def pairs(rows: Tensor) -> Iterator[tuple[Tensor, Tensor | None]]:
        for chosen in rows.split(batch):
            decoded = [_decoded(paths[i], channels, size) for i in chosen.tolist()]
            yield transform(torch.stack(decoded)), None if labels is None else labels[chosen]

    notes = ["one half of the images calibrates, the other tests"]
    if want.preprocessing is None:
        notes.append(
            f"scaled to {size} pixels and normalised with {'ImageNet' if mean == IMAGENET[0] else 'usual'} statistics"
        )
    return Images(lambda: pairs(parts[0]), lambda: pairs(parts[1]), classes, len(order) == 1, notes)


def _decoded(path: str, channels: int, size: int) -> Tensor:
    from torchvision.transforms.v2.functional import pil_to_tensor

    pixels: Tensor = pil_to_tensor(resize_and_crop(open_image(path, channels), size, EVAL_CROP))
    return pixels
