"""MNIST (LeCun et al. 1998): 70,000 handwritten digits, grey, 28x28."""

from __future__ import annotations

from pathlib import Path

from torchvision.datasets import MNIST

from qat.data.batch_transform import PadMode
from qat.data.image_data import ImageData
from qat.data.known_dataset import KnownDataset
from qat.data.split import Split
from qat.data.tensor_images import TensorImages

CLASSES = tuple("0123456789")
MEAN, STD = (0.1307,), (0.3081,)


def mnist(
    root: str | Path | None = None,
    *,
    val_fraction: float = 0.1,
    split_seed: int = 0,
    limit_train: int | None = None,
    limit_test: int | None = None,
    crop_padding: int = 0,
    flip: bool = False,
    pad_mode: PadMode = "zeros",
) -> ImageData:
    """MNIST as uint8 (1, 28, 28): 60,000 training images (a tenth of them for validation) and 10,000 test images.

    Args:
        root: folder with torchvision's `MNIST/raw/*-ubyte`, or with a copy as `train/<class>/*` and `test/<class>/*` in
            it or in its subfolder `mnist`, `mnist_jpeg` or `mnist_png`; without either, torchvision downloads the
            original into it. None is the environment's QAT_DATA_DIR, else ./data. The `label` says if it is a copy.
        val_fraction, split_seed, limit_train, limit_test: see `Split`.
        crop_padding, flip, pad_mode: see `BatchTransform`.

    Raises:
        FileNotFoundError: the data set is missing and cannot be downloaded.
        ValueError: an option is out of range, or a copy has other classes or an image that cannot be decoded.
    """
    split = Split(val_fraction, split_seed, limit_train, limit_test)
    return MNIST_DATASET.load(root, split, crop_padding=crop_padding, flip=flip, pad_mode=pad_mode)


def _read(root: Path, train: bool) -> TensorImages:
    dataset = MNIST(str(root), train=train, download=True)
    return TensorImages(dataset.data.unsqueeze(1), dataset.targets)


MNIST_DATASET = KnownDataset(
    "mnist", "MNIST", "MNIST/raw/train-images-idx3-ubyte", CLASSES, MEAN, STD, (1, 28, 28), _read
)
