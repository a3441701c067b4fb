import numpy as np
import pytest
import torch

from qat.data import BatchTransform
from qat.data.batch_transform import PadMode

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
NUMPY_MODE = {"zeros": "constant", "reflect": "reflect"}


def random_images(n: int, height: int = 8, width: int = 10) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (n, 3, height, width), dtype=torch.uint8, generator=generator)


def pixels(normalised: torch.Tensor) -> np.ndarray:
    """Back to 0..255."""
    mean, std = (np.array(values).reshape(-1, 1, 1) for values in (MEAN, STD))
    return np.rint((normalised.numpy() * std + mean) * 255).astype(np.uint8)


def test_eval_normalises_and_nothing_else() -> None:
    images = random_images(16)
    mean, std = (np.array(values).reshape(-1, 1, 1) for values in (MEAN, STD))
    expected = (images.numpy() / 255 - mean) / std
    state = torch.get_rng_state()
    out = BatchTransform(MEAN, STD, crop_padding=3, flip=True).eval()(images)
    assert out.dtype == torch.float32
    np.testing.assert_allclose(out.numpy(), expected, rtol=0, atol=2e-6)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("pad_mode", ["zeros", "reflect"])
def test_a_crop_is_a_window_of_the_padded_image(pad_mode: PadMode) -> None:
    images, padding = random_images(300), 2
    out = pixels(BatchTransform(MEAN, STD, padding, pad_mode=pad_mode)(images))
    border = ((0, 0), (0, 0), (padding, padding), (padding, padding))
    padded = np.pad(images.numpy(), border, mode=NUMPY_MODE[pad_mode])  # type: ignore[call-overload]
    offsets = [
        [(y, x) for y in range(5) for x in range(5) if np.array_equal(big[:, y : y + 8, x : x + 10], small)]
        for big, small in zip(padded, out, strict=True)
    ]
    assert all(len(matches) == 1 for matches in offsets)
    assert len({matches[0] for matches in offsets}) == 25  # every offset is drawn, independently for each image


def test_a_flip_mirrors_about_half_of_the_images() -> None:
    images = random_images(400)
    out = pixels(BatchTransform(MEAN, STD, flip=True)(images))
    kept = [np.array_equal(a, b) for a, b in zip(images.numpy(), out, strict=True)]
    mirrored = [np.array_equal(a[:, :, ::-1], b) for a, b in zip(images.numpy(), out, strict=True)]
    assert all(a != b for a, b in zip(kept, mirrored, strict=True))
    assert 150 < sum(mirrored) < 250


def test_the_images_stay_as_they_are() -> None:
    images = random_images(4)
    before = images.clone()
    BatchTransform(MEAN, STD, 2, flip=True)(images)
    assert torch.equal(images, before)


def test_a_generator_reproduces_a_batch_and_spares_the_global_state() -> None:
    transform, images = BatchTransform(MEAN, STD, 2, flip=True), random_images(32)
    state = torch.get_rng_state()
    first = transform(images, torch.Generator().manual_seed(5))
    again = transform(images, torch.Generator().manual_seed(5))
    other = transform(images, torch.Generator().manual_seed(6))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(torch.get_rng_state(), state)


def test_without_a_generator_the_global_seed_decides() -> None:
    transform, images = BatchTransform(MEAN, STD, 2, flip=True), random_images(32)
    torch.manual_seed(1)
    first, second = transform(images), transform(images)
    torch.manual_seed(1)
    assert torch.equal(transform(images), first)
    assert not torch.equal(first, second)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mean": [0.5, 0.5], "std": [1.0]}, r"mean=\(0.5, 0.5\) and std=\(1.0,\) differ in length"),
        ({"mean": [0.5], "std": [0.0]}, r"std=\(0.0,\) must be positive"),
        ({"mean": [0.5], "std": [1.0], "crop_padding": -1}, "crop_padding=-1 is not possible"),
        ({"mean": [0.5], "std": [1.0], "pad_mode": "edge"}, "pad_mode='edge' is unknown: write 'zeros' or 'reflect'"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        BatchTransform(**options)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "images", [torch.zeros(2, 3, 8, 8), torch.zeros(2, 1, 8, 8).byte(), torch.zeros(3, 8, 8).byte()]
)
def test_what_is_not_a_batch_of_uint8_images_is_refused(images: torch.Tensor) -> None:
    with pytest.raises(ValueError, match=r"BatchTransform takes torch.uint8 \(N, 3, H, W\)"):
        BatchTransform(MEAN, STD)(images)
