"""scikit-learn's bundled handwritten digits: 1,797 images of 8x8, no download, seconds to train on."""

from __future__ import annotations

import numpy as np
import torch
from sklearn.datasets import load_digits

from qat.data.batch_transform import PadMode
from qat.data.image_data import ImageData
from qat.data.split import Split
from qat.data.tensor_images import TensorImages

N_TEST = 500
TEST_SEED = 0
# of the 1,297 images outside the test set, in 0..1
MEAN, STD = (0.3060,), (0.3762,)


def digits(
    *,
    val_fraction: float = 0.1,
    split_seed: int = 0,
    limit_train: int | None = None,
    limit_test: int | None = None,
    crop_padding: int = 0,
    flip: bool = False,
    pad_mode: PadMode = "zeros",
) -> ImageData:
    """The digits 0 to 9 as uint8 (1, 8, 8): 1,297 training images (a tenth of them for validation) and 500 fixed test images.

    The 17 grey levels 0..16 of the original become 0..255. For the arguments see `Split` and `BatchTransform`.

    Raises:
        ValueError: an option is out of range.

    >>> data = digits()
    >>> data.image_shape, len(data.train), len(data.val), len(data.test)
    ((1, 8, 8), 1167, 130, 500)
    """
    split = Split(val_fraction, split_seed, limit_train, limit_test)
    bunch = load_digits()
    levels = torch.from_numpy(np.rint(bunch.images * (255 / 16)).astype(np.uint8))
    all_images = TensorImages(levels.unsqueeze(1), torch.from_numpy(bunch.target).long())

    order = torch.randperm(len(all_images), generator=torch.Generator().manual_seed(TEST_SEED))
    test, pool = all_images.select(order[:N_TEST]), all_images.select(order[N_TEST:])
    train, val = split.train_val(len(pool))
    return ImageData(
        name="digits",
        label="digits",
        classes=tuple(str(name) for name in bunch.target_names),
        mean=MEAN,
        std=STD,
        image_shape=(1, 8, 8),
        train=pool.select(train),
        val=pool.select(val),
        test=test.select(split.test(N_TEST)),
        crop_padding=crop_padding,
        flip=flip,
        pad_mode=pad_mode,
    )
