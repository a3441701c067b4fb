"""Whether training images are those of another run: of the one that trained the float network, or that is resumed."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import lightning as L

from qat.data import ImageDataset
from qat.data.lazy_images import LazyImages
from qat.data.tensor_images import TensorImages
from qat.reading.checkpoint import read_checkpoint

KEY = "training_images"


def digest_images(digest: Any, images: ImageDataset) -> None:
    """Add training images to a hash: their content, or of large files in a folder, names, sizes and times."""
    if isinstance(images, TensorImages):
        _digest_tensors(digest, images)
    elif isinstance(images, LazyImages):
        _digest_files(digest, images, with_times=True)
    else:  # a dataset of the user's own; one that draws at random is never the same, and its network never cached
        for index in range(len(images)):
            image, of_class = images[index]
            digest.update(f"{tuple(image.shape)} {int(of_class)}\n".encode())
            digest.update(image.cpu().contiguous().numpy().data)


class RecordTrainingImages(L.Callback):
    """Keeps a digest of the training images in checkpoints, for `check_same_images`.

    Args:
        images: of the training split, without augmentation.
    """

    def __init__(self, images: ImageDataset) -> None:
        self.digest = _digest_to_resume(images)

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        checkpoint[KEY] = self.digest


def check_same_images(path: Path, images: ImageDataset) -> None:
    """Check that a run is resumed with the training images that it began with. They may have moved.

    Large ones are known by names and sizes, those of a dataset of the user's own by their number.

    Args:
        path: the checkpoint, of a version that recorded them, or an older one.
        images: as in `RecordTrainingImages`.

    Raises:
        ValueError: they are others.
    """
    content = read_checkpoint(path)
    recorded = content.get(KEY) if isinstance(content, dict) else None
    if recorded not in (None, _digest_to_resume(images)):
        raise ValueError(
            f"the training images are not those with which the run of {path} began: restore them, or start a new run without "
            "resume."
        )


def _digest_to_resume(images: ImageDataset) -> str:
    digest = hashlib.sha256(f"{len(images)}".encode())
    if isinstance(images, TensorImages):
        _digest_tensors(digest, images)
    elif isinstance(images, LazyImages):
        _digest_files(digest, images, with_times=False)
    return digest.hexdigest()[:24]


def _digest_tensors(digest: Any, images: TensorImages) -> None:
    digest.update(str(tuple(images.images.shape)).encode())
    digest.update(images.images.contiguous().numpy().data)
    digest.update(images.labels.numpy().data)


def _digest_files(digest: Any, images: LazyImages, with_times: bool) -> None:
    digest.update(f"{images.image_size} {images.channels}".encode())
    for path, label in zip(images.files.paths, images.files.labels, strict=True):
        file, stat = Path(path), Path(path).stat()
        changed = f"\0{stat.st_mtime_ns}" if with_times else ""
        digest.update(f"{file.relative_to(images.files.folder)}\0{stat.st_size}{changed}\0{label}\n".encode())
