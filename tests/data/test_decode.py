import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import qat.data.decode as decode_module
from qat.data.decode import decode_images
from qat.data.image_files import ImageFiles
from tests.data.images_on_disk import cache_in, write_images


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    return cache_in(tmp_path_factory.mktemp("cache"), monkeypatch)


def test_images_are_those_of_pil(tmp_path: Path) -> None:
    files = ImageFiles.in_folder(write_images(tmp_path / "train", n=300, size=(9, 6)))  # more than one chunk
    images = decode_images(files, channels=3, image_size=None)
    assert images.images.shape == (600, 3, 6, 9)
    for i in (0, 255, 256, 599):
        expected = np.asarray(Image.open(files.paths[i])).transpose(2, 0, 1)
        assert np.array_equal(images.images[i].numpy(), expected)
        assert files.classes[images.labels[i]] == Path(files.paths[i]).parent.name


def test_grey_images_have_one_channel(tmp_path: Path) -> None:
    files = ImageFiles.in_folder(write_images(tmp_path / "train"))
    images = decode_images(files, channels=1, image_size=None)
    expected = np.asarray(Image.open(files.paths[2]).convert("L"))
    assert np.array_equal(images.images[2, 0].numpy(), expected)


def test_image_size_brings_all_to_one_size(tmp_path: Path) -> None:
    write_images(tmp_path / "train", ("cat",), size=(20, 10))
    write_images(tmp_path / "train", ("dog",), size=(10, 30))
    files = ImageFiles.in_folder(tmp_path / "train")
    assert decode_images(files, 3, image_size=10).images.shape == (6, 3, 10, 10)
    with pytest.raises(ValueError, match=r"dog/0.png is 10x30 pixels, .*cat/0.png is 20x10: set data.image_size"):
        decode_images(files, 3, image_size=None)


def test_the_second_time_comes_from_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    files = ImageFiles.in_folder(write_images(tmp_path / "train"))
    first = decode_images(files, 3, None)
    monkeypatch.setattr(decode_module, "open_image", None)
    second = decode_images(files, 3, None)
    assert second.images.equal(first.images)
    assert second.labels.equal(first.labels)
    assert [file.suffix for file in cache.iterdir()] == [".safetensors"]  # and nothing unfinished
    with pytest.raises(TypeError):
        decode_images(files, 1, None)  # grey images are another entry


@pytest.mark.parametrize("what", ["time", "size", "name"])
def test_a_changed_file_is_decoded_again(tmp_path: Path, what: str) -> None:
    """Each of the three is enough: bitmaps of equal mode have equal size, and all files have equal times."""
    folder = write_images(tmp_path / "train", suffix="bmp")
    for file in folder.rglob("*.bmp"):
        os.utime(file, ns=(0, 10**18))
    before = decode_images(ImageFiles.in_folder(folder), 3, None)
    changed = folder / "cat" / "0.bmp"
    old = changed.stat()
    if what == "name":
        changed.rename(changed.with_name("7.bmp"))  # now the last of the cats
        expected = before.images[[1, 2, 0, 3, 4, 5]]
    else:
        Image.new("RGB" if what == "time" else "L", (8, 8), "white").save(changed)
        os.utime(changed, ns=(old.st_atime_ns, old.st_mtime_ns + (what == "time")))
        assert (changed.stat().st_size == old.st_size) == (what == "time")
        expected = before.images.clone()
        expected[0] = 255
    assert decode_images(ImageFiles.in_folder(folder), 3, None).images.equal(expected)


def test_a_broken_image_is_named(tmp_path: Path, cache: Path) -> None:
    folder = write_images(tmp_path / "train")
    whole = (folder / "dog" / "1.png").read_bytes()
    (folder / "dog" / "1.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(
        ValueError, match=r"image .*train/dog/1.png cannot be decoded .*: replace the file or remove it"
    ):
        decode_images(ImageFiles.in_folder(folder), 3, None)
    assert list(cache.iterdir()) == []


def test_a_failed_write_leaves_nothing_and_does_not_stop_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cache: Path
) -> None:
    def disk_full(self: Path, data: bytes) -> int:
        with self.open("wb") as file:
            file.write(data[:10])
        raise OSError("No space left on device")

    monkeypatch.setattr(Path, "write_bytes", disk_full)
    files = ImageFiles.in_folder(write_images(tmp_path / "train"))
    with pytest.warns(UserWarning, match="not cached in .*No space left on device.*set QAT_CACHE_DIR"):
        images = decode_images(files, 3, None)
    assert len(images) == 6
    assert list(cache.iterdir()) == []


def test_an_unreadable_cache_is_written_again(tmp_path: Path, cache: Path) -> None:
    files = ImageFiles.in_folder(write_images(tmp_path / "train"))
    first = decode_images(files, 3, None)
    (entry,) = cache.iterdir()
    entry.write_bytes(b"damaged")
    with pytest.warns(UserWarning, match="cannot be read .*: decoding them again"):
        second = decode_images(files, 3, None)
    assert second.images.equal(first.images)
    assert decode_images(files, 3, None).images.equal(first.images)
