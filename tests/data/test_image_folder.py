from pathlib import Path

import pytest
import torch

from qat.data import LazyImages, TensorImages, image_folder
from tests.data.images_on_disk import cache_in, write_images


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    return cache_in(tmp_path_factory.mktemp("cache"), monkeypatch)


def folder(root: Path, *splits: str, **options: object) -> Path:
    for split in splits:
        write_images(root / split, **options)
    return root


def test_validation_is_split_from_train(tmp_path: Path) -> None:
    data = image_folder(folder(tmp_path / "pets", "train", "test", n=10), val_fraction=0.2)
    assert (data.name, data.classes, data.image_shape) == ("pets", ("cat", "dog"), (3, 8, 8))
    assert (len(data.train), len(data.val), len(data.test)) == (16, 4, 20)
    assert isinstance(data.train, TensorImages)


def test_a_lone_val_folder_is_the_test_set(tmp_path: Path) -> None:
    write_images(tmp_path / "train", n=10)
    write_images(tmp_path / "val", n=3)
    data = image_folder(tmp_path)
    assert (len(data.train), len(data.val), len(data.test)) == (18, 2, 6)


def test_val_and_test_folders_are_taken_as_they_are(tmp_path: Path) -> None:
    for split, n in {"train": 10, "val": 4, "test": 3}.items():
        write_images(tmp_path / split, n=n)
    data = image_folder(tmp_path)
    assert (len(data.train), len(data.val), len(data.test)) == (20, 8, 6)
    data = image_folder(tmp_path, limit_train=5, limit_test=2)
    assert (len(data.train), len(data.val), len(data.test)) == (5, 2, 2)


def test_large_images_are_decoded_on_access(tmp_path: Path, cache: Path) -> None:
    folder(tmp_path, "train", "test", n=5, size=(100, 80))
    data = image_folder(tmp_path, image_size=70)
    assert isinstance(data.train, LazyImages)
    assert data.image_shape == (3, 70, 70)
    assert list(cache.iterdir()) == []

    assert not torch.equal(data.train[0][0], data.train[0][0])  # a random crop
    assert data.train_unaugmented is not None
    for images in (data.train_unaugmented, data.val, data.test):
        pixels, label = images[0]
        assert (pixels.dtype, pixels.shape, label.dtype) == (torch.uint8, (3, 70, 70), torch.int64)
        assert torch.equal(pixels, images[0][0])
    assert image_folder(tmp_path).image_shape == (3, 224, 224)


def test_train_and_train_unaugmented_are_the_same_images(tmp_path: Path) -> None:
    data = image_folder(folder(tmp_path, "train", "test", n=8, size=(80, 80)))
    assert isinstance(data.train, LazyImages)
    assert isinstance(data.train_unaugmented, LazyImages)
    assert isinstance(data.val, LazyImages)
    assert data.train.files == data.train_unaugmented.files
    assert not set(data.train.files.paths) & set(data.val.files.paths)
    assert [Path(path).parent.name for path in data.train.files.paths] == [
        data.classes[data.train[i][1]] for i in range(len(data.train))
    ]


def test_small_images_enlarged_are_not_held_in_memory(tmp_path: Path) -> None:
    data = image_folder(folder(tmp_path, "train", "test"), image_size=96)
    assert isinstance(data.train, LazyImages)
    assert data.image_shape == (3, 96, 96)


def test_grey_images_and_own_normalisation(tmp_path: Path) -> None:
    folder(tmp_path, "train", "test")
    assert image_folder(tmp_path, channels=1).mean == (0.5,)
    data = image_folder(tmp_path, channels=1, mean=[0.2], std=[0.3])
    assert (data.image_shape, data.mean, data.std) == ((1, 8, 8), (0.2,), (0.3,))


def test_missing_folders_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(FileNotFoundError, match=r"nowhere has neither train/ nor test/: set data.root="):
        image_folder(tmp_path / "nowhere")
    write_images(tmp_path / "train")
    monkeypatch.setenv("QAT_DATA_DIR", str(tmp_path))
    with pytest.raises(FileNotFoundError, match=rf"{tmp_path} has train/: set .*test/<class>"):
        image_folder()


def test_splits_with_other_classes_are_refused(tmp_path: Path) -> None:
    write_images(tmp_path / "train", ("cat", "dog"))
    write_images(tmp_path / "test", ("cat", "wolf"))
    with pytest.raises(ValueError, match=r"test and .*train differ in the class folders \['dog', 'wolf'\]"):
        image_folder(tmp_path)


def test_a_broken_large_image_is_named_on_access(tmp_path: Path) -> None:
    folder(tmp_path, "train", "test", size=(80, 80))
    (tmp_path / "test" / "cat" / "1.png").write_bytes(b"not a png")
    data = image_folder(tmp_path)
    with pytest.raises(ValueError, match=r"test/cat/1.png cannot be decoded"):
        data.test[1]


@pytest.mark.parametrize(
    ("options", "message"),
    [({"channels": 4}, "channels=4 is not possible"), ({"image_size": 0}, "image_size=0 is not")],
)
def test_wrong_options_are_refused(tmp_path: Path, options: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        image_folder(tmp_path, **options)  # type: ignore[arg-type]
