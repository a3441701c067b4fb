"""mnist and cifar10: which layouts are recognised, and the errors if no data set is there."""

import pickle
import struct
from collections.abc import Callable
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
import torch
import torchvision.datasets

from qat.data import TensorImages, cifar10, mnist
from tests.data.images_on_disk import cache_in, write_images
from tests.paths import SHARED

CIFAR_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    return cache_in(tmp_path_factory.mktemp("cache"), monkeypatch)


@pytest.fixture
def shared_data() -> Path:
    folder = SHARED / "data"
    if not folder.is_dir():
        pytest.skip(f"needs MNIST and the CIFAR-10 copy in {folder} (set QAT_SHARED)")
    return folder


class OldDtype:
    """Pickles as the dtypes in the official files do: numpy.dtype('u1', 0, 1)."""

    def __reduce__(self) -> tuple[type, tuple[str, int, int]]:
        return np.dtype, ("u1", 0, 1)


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise URLError("Name or service not known")

    monkeypatch.setattr("torchvision.datasets.cifar.download_and_extract_archive", refuse)
    monkeypatch.setattr("torchvision.datasets.mnist.download_and_extract_archive", refuse)


def write_mnist(root: Path, n: int = 20) -> np.ndarray:
    raw = root / "MNIST" / "raw"
    raw.mkdir(parents=True)
    random = np.random.default_rng(0)
    for split in ("train", "t10k"):
        images = random.integers(0, 256, (n, 28, 28), dtype=np.uint8)
        labels = (np.arange(n) % 10).astype(np.uint8)
        (raw / f"{split}-images-idx3-ubyte").write_bytes(struct.pack(">IIII", 0x803, n, 28, 28) + images.tobytes())
        (raw / f"{split}-labels-idx1-ubyte").write_bytes(struct.pack(">II", 0x801, n) + labels.tobytes())
    return images


def write_cifar10(root: Path) -> np.ndarray:
    folder = root / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    random = np.random.default_rng(0)
    for name in [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]:
        pixels = random.integers(0, 256, (10, 3 * 32 * 32), dtype=np.uint8)
        (folder / name).write_bytes(pickle.dumps({"data": pixels, "labels": list(range(10)), "old": OldDtype()}))
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": list(CIFAR_CLASSES)}))
    return pixels


@pytest.mark.usefixtures("offline")
def test_mnist_reads_torchvisions_files(tmp_path: Path) -> None:
    test_pixels = write_mnist(tmp_path)
    data = mnist(tmp_path)
    assert (data.label, data.image_shape) == ("mnist", (1, 28, 28))
    assert (len(data.train), len(data.val), len(data.test)) == (18, 2, 20)
    assert isinstance(data.test, TensorImages)
    assert np.array_equal(data.test.images[:, 0].numpy(), test_pixels)
    assert data.test.labels.tolist() == [*range(10), *range(10)]


@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize("subfolder", ["", "cifar10"])
def test_cifar10_reads_torchvisions_files(tmp_path: Path, subfolder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    test_pixels = write_cifar10(tmp_path / subfolder)
    with pytest.raises(FileNotFoundError, match="not complete"):
        cifar10(tmp_path)  # torchvision checks the sums of the real files
    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda path, md5=None: Path(path).is_file())
    data = cifar10(tmp_path)
    assert (data.label, data.classes, data.image_shape) == ("cifar10", CIFAR_CLASSES, (3, 32, 32))
    assert (len(data.train), len(data.val), len(data.test)) == (45, 5, 10)
    assert isinstance(data.test, TensorImages)
    assert np.array_equal(data.test.images.numpy(), test_pixels.reshape(10, 3, 32, 32))
    assert data.test.images.is_contiguous()


@pytest.mark.parametrize("subfolder", ["", "cifar10", "cifar10_jpeg"])
@pytest.mark.parametrize(("suffix", "label"), [("jpg", "cifar10 (jpeg copy)"), ("png", "cifar10 (png copy)")])
def test_a_copy_of_cifar10_says_so(tmp_path: Path, subfolder: str, suffix: str, label: str) -> None:
    for split in ("train", "test"):
        write_images(tmp_path / subfolder / split, CIFAR_CLASSES, n=2, size=(32, 32), suffix=suffix)
    data = cifar10(tmp_path)
    assert data.label == label
    assert (data.name, len(data.train), len(data.val), len(data.test)) == ("cifar10", 18, 2, 20)


def test_a_copy_of_mnist_is_grey(tmp_path: Path) -> None:
    for split in ("train", "test"):
        write_images(tmp_path / split, tuple("0123456789"), n=2, size=(28, 28), mode="L")
    data = mnist(tmp_path)
    assert data.label == "mnist (png copy)"
    assert isinstance(data.train, TensorImages)
    assert data.train.images.shape == (18, 1, 28, 28)


def test_a_folder_of_other_images_is_no_copy(tmp_path: Path) -> None:
    for split in ("train", "test"):
        write_images(tmp_path / split)
    with pytest.raises(ValueError, match=r"train has the class folders cat, dog, CIFAR-10 has .*use data=image_folder"):
        cifar10(tmp_path)


@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize(("load", "title"), [(cifar10, "CIFAR-10"), (mnist, "MNIST")])
def test_no_data_and_no_network_is_one_sentence(tmp_path: Path, load: Callable[..., object], title: str) -> None:
    with pytest.raises(FileNotFoundError) as caught:
        load(tmp_path)
    message = str(caught.value)
    assert message.startswith(f"{title} is not complete in {tmp_path} and cannot be downloaded there")
    for wanted in ("Name or service not known", "train/<class>/*.jpg", "data.root=", "QAT_DATA_DIR"):
        assert wanted in message
    assert "\n" not in message


def test_a_mistyped_root_is_not_created(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torchvision.datasets.CIFAR10, "download", lambda self: pytest.fail("downloads"))
    with pytest.raises(FileNotFoundError, match=r"CIFAR-10 is not in .*tpyo/data, a folder that does not exist: put "):
        cifar10(tmp_path / "tpyo" / "data")
    assert list(tmp_path.iterdir()) == []


def test_the_environment_names_the_default_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_mnist(tmp_path)
    monkeypatch.setenv("QAT_DATA_DIR", str(tmp_path))
    assert len(mnist().test) == 20
    assert len(mnist(limit_test=3).test) == 3


def test_options_are_checked_before_anything_is_read(tmp_path: Path) -> None:
    for load in (cifar10, mnist):
        with pytest.raises(ValueError, match="val_fraction=2"):
            load(tmp_path / "no" / "where", val_fraction=2)


def test_the_real_mnist(shared_data: Path) -> None:
    data = mnist(shared_data)
    assert data.label == "mnist"
    assert (len(data.train), len(data.val), len(data.test)) == (54_000, 6_000, 10_000)
    assert isinstance(data.train, TensorImages)
    values = data.train.images.float() / 255
    assert values.mean().item() == pytest.approx(data.mean[0], abs=1e-3)
    assert values.std().item() == pytest.approx(data.std[0], abs=1e-3)
    assert isinstance(data.test, TensorImages)
    assert torch.bincount(data.test.labels).tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]


@pytest.mark.slow
def test_the_real_cifar10_copy_is_found_from_either_root(shared_data: Path) -> None:
    for root in (shared_data, shared_data / "cifar10_jpeg"):
        data = cifar10(root)
        assert data.label == "cifar10 (jpeg copy)"
        assert (len(data.train), len(data.val), len(data.test)) == (45_000, 5_000, 10_000)
        assert isinstance(data.test, TensorImages)
        assert torch.bincount(data.test.labels).tolist() == [1000] * 10
