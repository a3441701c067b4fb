"""Your own images, as `train/<class>/*` and `test/<class>/*`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeAlias

from qat.arguments import is_whole_number
from qat.data.batch_transform import PadMode, check_normalisation
from qat.data.decode import decode_images
from qat.data.image_data import ImageData
from qat.data.image_files import PIL_MODES, ImageFiles, are_small, data_root
from qat.data.lazy_images import LazyImages
from qat.data.split import Split
from qat.data.tensor_images import TensorImages
from qat.messages import shown

MAX_SMALL_PIXELS = 64  # per side
MAX_SMALL_FILES = 200_000
DEFAULT_SIZE = 224  # of larger images
# mean and std by channels: ImageNet's, which torchvision's weights were trained with; grey images are scaled to -1..1
NORMALISATION = {1: ((0.5,), (0.5,)), 3: ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))}

Splits: TypeAlias = dict[str, TensorImages] | dict[str, LazyImages]


def image_folder(
    root: str | Path | None = None,
    *,
    image_size: int | None = None,
    channels: int = 3,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    val_fraction: float = 0.1,
    split_seed: int = 0,
    limit_train: int | None = None,
    limit_test: int | None = None,
    crop_padding: int = 0,
    flip: bool = True,
    pad_mode: PadMode = "zeros",
) -> ImageData:
    """Images in folders named by their class, as uint8 (channels, image_size, image_size).

    Images of up to 64 pixels (and fewer than 200,000 files) are decoded once, kept in memory and cached. Larger ones
    are decoded on access, with random-resized crops for training and centre crops for evaluation; give the data module
    some `num_workers`.

    Args:
        root: folder with `train/` and one or both of `val/` and `test/`, each with one folder per class. If only one of
            these two exists, it is the test set, and validation is split from `train`. None is the environment's
            QAT_DATA_DIR, else ./data.
        image_size: pixels per side; None keeps small images as they are (all of one size) and uses 224 for larger ones.
        channels: 1 reads grey images, 3 RGB.
        mean, std: normalisation per channel, for images in 0..1; None is ImageNet's (for grey images 0.5 and 0.5).
        val_fraction, split_seed, limit_train, limit_test: see `Split`; if `val/` is the validation set, `val_fraction` is
            ignored and `limit_test` limits it, too.
        crop_padding, flip, pad_mode: see `BatchTransform`; `crop_padding=4` suits images of 32 pixels.

    Raises:
        FileNotFoundError: a folder is missing or has no images.
        ValueError: an option is out of range, the splits differ in classes, or a small image cannot be decoded.
    """
    split = Split(val_fraction, split_seed, limit_train, limit_test)
    _check_options(channels, image_size)
    mean, std = _normalisation(channels, mean, std)
    root = data_root(root)
    files = _list_splits(root)
    splits = _open_splits(files, channels, image_size)
    train, val = _select_train_val(splits, split)
    test = splits["test"]
    height, width = test[0][0].shape[1:]
    return ImageData(
        name=root.resolve().name,
        label=root.resolve().name,
        classes=files["train"].classes,
        mean=mean,
        std=std,
        image_shape=(channels, height, width),
        train=train.randomly_cropped() if isinstance(train, LazyImages) else train,
        val=val,
        test=test.select(split.test(len(test))),
        train_unaugmented=train,
        crop_padding=crop_padding,
        flip=flip,
        pad_mode=pad_mode,
    )


def _check_options(channels: int, image_size: int | None) -> None:
    if not is_whole_number(channels) or channels not in PIL_MODES:
        raise ValueError(f"channels={shown(channels)} is not possible: write 1 for grey images or 3 for RGB.")
    if image_size is not None and not is_whole_number(image_size):
        raise ValueError(
            f"image_size={shown(image_size)} is not possible: write the pixels per side, or null for the default."
        )


def _normalisation(
    channels: int, mean: Sequence[float] | None, std: Sequence[float] | None
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    default_mean, default_std = NORMALISATION[channels]
    mean, std = default_mean if mean is None else mean, default_std if std is None else std
    check_normalisation(mean, std)
    return tuple(mean), tuple(std)


def _list_splits(root: Path) -> dict[str, ImageFiles]:
    """The files of "train", "test" and, if there are folders for both, "val"."""
    present = [split for split in ("train", "val", "test") if (root / split).is_dir()]
    if "train" not in present or len(present) < 2:
        raise FileNotFoundError(
            f"{root} has {' and '.join(f'{split}/' for split in present) or 'neither train/ nor test/'}: "
            "set data.root= (or QAT_DATA_DIR) to a folder with train/<class>/* and test/<class>/* (or val/<class>/*)."
        )
    files = {split: ImageFiles.in_folder(root / split) for split in present}
    if "test" not in files:
        files["test"] = files.pop("val")
    for split in files.values():
        if differing := set(split.classes) ^ set(files["train"].classes):
            raise ValueError(
                f"{split.folder} and {files['train'].folder} differ in the class folders {sorted(differing)[:5]}: "
                "give every split the same ones."
            )
    return files


def _open_splits(files: dict[str, ImageFiles], channels: int, image_size: int | None) -> Splits:
    """Hold all splits in memory if the images are small, else decode all on access."""
    n_files = sum(len(split.paths) for split in files.values())
    one_per_class = [
        path for split in files.values() for path in dict(zip(split.labels, split.paths, strict=True)).values()
    ]
    has_small_size = (image_size or 0) <= MAX_SMALL_PIXELS
    if n_files < MAX_SMALL_FILES and has_small_size and are_small(one_per_class, MAX_SMALL_PIXELS):
        return {name: decode_images(split, channels, image_size) for name, split in files.items()}
    return {name: LazyImages(split, image_size or DEFAULT_SIZE, channels) for name, split in files.items()}


def _select_train_val(splits: Splits, split: Split) -> tuple[TensorImages | LazyImages, TensorImages | LazyImages]:
    """The training and the validation images; these come from "val" if there is one, else from "train"."""
    pool = splits["train"]
    if "val" in splits:
        train_rows, _ = replace(split, val_fraction=0.0).train_val(len(pool))
        return pool.select(train_rows), splits["val"].select(split.test(len(splits["val"])))
    train_rows, val_rows = split.train_val(len(pool))
    return pool.select(train_rows), pool.select(val_rows)
