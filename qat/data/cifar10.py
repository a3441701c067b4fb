"""CIFAR-10 (Krizhevsky 2009): 60,000 colour images of 32x32 in ten classes."""

from __future__ import annotations

import warnings
from pathlib import Path

import torch
from torchvision.datasets import CIFAR10

from qat.data.batch_transform import PadMode
from qat.data.image_data import ImageData
from qat.data.known_dataset import KnownDataset
from qat.data.split import Split
from qat.data.tensor_images import TensorImages

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
# ImageNet's, which the public ResNet-20 weights were trained with
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def cifar10(
    root: str | Path | None = None,
    *,
    val_fraction: float = 0.1,
    split_seed: int = 0,
    limit_train: int | None = None,
    limit_test: int | None = None,
    crop_padding: int = 4,
    flip: bool = True,
    pad_mode: PadMode = "zeros",
) -> ImageData:
    """CIFAR-10 as uint8 (3, 32, 32): 50,000 training images (a tenth of them for validation) and 10,000 test images.

    Args:
        root: folder with torchvision's `cifar-10-batches-py/`, or with a copy as `train/<class>/*` and `test/<class>/*`
            in it or in its subfolder `cifar10`, `cifar10_jpeg` or `cifar10_png`; without either, torchvision downloads
            the original into it. None is the environment's QAT_DATA_DIR, else ./data. The `label` says if it is a copy.
        val_fraction, split_seed, limit_train, limit_test: see `Split`.
        crop_padding, flip, pad_mode: see `BatchTransform`; the defaults are He et al. 2016, section 4.2.

    Raises:
        FileNotFoundError: the data set is missing and cannot be downloaded.
        ValueError: an option is out of range, or a copy has other classes or an image that cannot be decoded.
    """
    split = Split(val_fraction, split_seed, limit_train, limit_test)
    return CIFAR10_DATASET.load(root, split, crop_padding=crop_padding, flip=flip, pad_mode=pad_mode)


def _read(root: Path, train: bool) -> TensorImages:
    with warnings.catch_warnings():
        # the official files were pickled by a numpy that wrote dtype(align=0)
        warnings.filterwarnings("ignore", message=r"dtype\(\): align should be passed")
        dataset = CIFAR10(str(root), train=train, download=True)
    images = torch.from_numpy(dataset.data).permute(0, 3, 1, 2)
    return TensorImages(images, torch.tensor(dataset.targets))


CIFAR10_DATASET = KnownDataset(
    "cifar10", "CIFAR-10", "cifar-10-batches-py/data_batch_1", CLASSES, MEAN, STD, (3, 32, 32), _read
)
