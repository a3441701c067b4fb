import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from qat.data import ImageData, TensorImages, digits


def rows(*splits: object) -> list[bytes]:
    """Every image with its label, as bytes, sorted."""
    records: list[bytes] = []
    for split in splits:
        assert isinstance(split, TensorImages)
        records += [
            image.numpy().tobytes() + bytes([label]) for image, label in zip(split.images, split.labels, strict=True)
        ]
    return sorted(records)


def test_each_of_the_1797_digits_is_in_one_split() -> None:
    data, bunch = digits(), load_digits()
    original = sorted(
        np.rint(image * 255 / 16).astype(np.uint8).tobytes() + bytes([label])
        for image, label in zip(bunch.images, bunch.target, strict=True)
    )
    assert rows(data.train, data.val, data.test) == original
    assert (len(data.train), len(data.val), len(data.test)) == (1167, 130, 500)
    assert data.num_classes == 10


def test_the_normalisation_is_that_of_the_images_that_do_not_test() -> None:
    data = digits(val_fraction=0.0)
    assert isinstance(data.train, TensorImages)
    values = data.train.images.double() / 255
    assert data.train.images.max() == 255
    assert data.mean == (pytest.approx(values.mean().item(), abs=5e-5),)
    assert data.std == (pytest.approx(values.std().item(), abs=5e-5),)


def test_the_test_images_do_not_depend_on_the_split() -> None:
    first, second = digits(split_seed=0), digits(split_seed=1, val_fraction=0.3)
    assert rows(first.test) == rows(second.test)
    assert rows(first.train) != rows(second.train)


def test_two_runs_see_the_same_digits() -> None:
    torch.manual_seed(1)
    first = digits()
    torch.manual_seed(2)
    second = digits()
    assert isinstance(first.train, TensorImages)
    assert isinstance(second.train, TensorImages)
    assert torch.equal(first.train.images, second.train.images)


def test_limits() -> None:
    data: ImageData = digits(limit_train=50, limit_test=20)
    assert (len(data.train), len(data.val), len(data.test)) == (50, 6, 20)
    with pytest.raises(ValueError, match="limit_train=0"):
        digits(limit_train=0)
