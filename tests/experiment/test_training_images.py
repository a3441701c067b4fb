"""Training images that changed are noticed: by the cache of float networks, and when a fit is resumed."""

import hashlib
import os
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from PIL import Image

from qat.data import ImageDataset, TensorImages
from qat.data.image_files import ImageFiles
from qat.data.lazy_images import LazyImages
from qat.experiment.training_images import RecordTrainingImages, check_same_images, digest_images

OTHERS = "the training images are not those with which the run of .*a.ckpt began: restore them, or start a new run"


def saved(folder: Path, images: ImageDataset) -> Path:
    """What a checkpoint of a fit with these images holds, beside its weights."""
    content: dict[str, Any] = {}
    trainer = L.Trainer(logger=False, accelerator="cpu", enable_progress_bar=False)
    RecordTrainingImages(images).on_save_checkpoint(trainer, L.LightningModule(), content)
    torch.save(content, folder / "a.ckpt")
    return folder / "a.ckpt"


def test_a_fit_is_not_resumed_with_other_images(tmp_path: Path) -> None:
    images, labels = torch.zeros(3, 1, 4, 4, dtype=torch.uint8), torch.tensor([0, 1, 0])
    checkpoint = saved(tmp_path, TensorImages(images, labels))
    check_same_images(checkpoint, TensorImages(images.clone(), labels.clone()))
    torch.save({}, tmp_path / "older.ckpt")
    check_same_images(tmp_path / "older.ckpt", TensorImages(images, labels))
    changed = images.clone()
    changed[1, 0, 2, 3] = 1
    for other in (TensorImages(changed, labels), TensorImages(images, labels.flip(0).roll(1))):
        with pytest.raises(ValueError, match=OTHERS):
            check_same_images(checkpoint, other)


def folder_of_images(folder: Path, grey: int = 0) -> LazyImages:
    """One image for each of two classes, uncompressed: all of one size in bytes."""
    for of_class in ("cats", "dogs"):
        (folder / of_class).mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((70, 70), grey, np.uint8)).save(folder / of_class / "a.bmp")
    return LazyImages(ImageFiles.in_folder(folder), 64, channels=1)


def test_a_large_image_that_changed_is_another_one_for_the_cache_of_float_networks(tmp_path: Path) -> None:
    def digest(images: LazyImages) -> str:
        made = hashlib.sha256()
        digest_images(made, images)
        return made.hexdigest()

    images = folder_of_images(tmp_path)
    before, checkpoint = digest(images), saved(tmp_path, images)
    assert digest(images) == before
    images = folder_of_images(tmp_path, grey=255)
    for path in images.files.paths:
        os.utime(path, ns=(1, 1))
    assert digest(images) != before
    check_same_images(checkpoint, images)  # a copy elsewhere has other times
    with (tmp_path / "cats" / "a.bmp").open("ab") as file:
        file.write(b"\0")
    with pytest.raises(ValueError, match=OTHERS):
        check_same_images(checkpoint, images)
