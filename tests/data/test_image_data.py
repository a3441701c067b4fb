from dataclasses import replace

import pytest
import torch

from qat.data import ImageData, TensorImages, digits


def no_images() -> TensorImages:
    return TensorImages(torch.zeros(0, 1, 8, 8).byte(), torch.zeros(0).long())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mean": (0.5, 0.5), "std": (1.0, 1.0)}, "has 2 numbers, the images have 1 channels"),
        ({"std": (-1.0,)}, "must be positive"),
        ({"crop_padding": 8}, "crop_padding=8 does not fit images of 8x8 pixels: write 0 to 7"),
        ({"train": no_images()}, "the train split of digits is empty"),
        ({"test": no_images()}, "the test split of digits is empty"),
    ],
)
def test_parts_that_do_not_fit_are_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(digits(), **change)  # type: ignore[arg-type]


def test_the_transform_is_the_one_of_the_data() -> None:
    data: ImageData = digits(crop_padding=2, flip=True, pad_mode="reflect")
    transform = data.batch_transform()
    assert (transform.crop_padding, transform.flip, transform.pad_mode) == (2, True, "reflect")
    black = transform.eval()(torch.zeros(1, 1, 8, 8).byte())
    torch.testing.assert_close(black, torch.full((1, 1, 8, 8), -data.mean[0] / data.std[0]))


def test_validation_may_be_empty() -> None:
    assert len(digits(val_fraction=0.0).val) == 0
