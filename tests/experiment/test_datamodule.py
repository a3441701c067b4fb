from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from torch import Tensor, nn

from qat.data import ImageData, TensorImages, cifar10, digits
from qat.experiment.datamodule import ImageDataModule
from qat.models import ResNetCifar, load_weights
from qat.training.checkpoint.epoch_sampler import EpochSampler
from tests.paths import SHARED

# Lightning's own, with recent versions of torch
pytestmark = pytest.mark.filterwarnings(r"ignore:.*isinstance\(treespec, LeafSpec\):FutureWarning")


class Recorder(L.LightningModule):
    """Keeps what the trainer hands to each step."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(64, 10)
        self.seen: dict[str, list[Tensor]] = {"train": [], "val": [], "test": []}
        self.labels: list[Tensor] = []

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        images, labels = batch
        self.seen["train"].append(images)
        self.labels.append(labels)
        return nn.functional.cross_entropy(self.layer(images.flatten(1)), labels)

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        self.seen["val"].append(batch[0])

    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        self.seen["test"].append(batch[0])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.0)


def trainer(path: Path, epochs: int = 1, **options: Any) -> L.Trainer:
    return L.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        logger=False,
        default_root_dir=path,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        **options,
    )


def normalised(data: ImageData, images: TensorImages) -> Tensor:
    return (images.images.float() / 255 - data.mean[0]) / data.std[0]


def contains(images: Tensor, pool: Tensor) -> list[bool]:
    """Whether each image is, as it is, one of the pool."""
    return (torch.cdist(images.flatten(1).double(), pool.flatten(1).double()).amin(1) < 1e-3).tolist()


def test_the_trainer_augments_training_batches_only(tmp_path: Path) -> None:
    data = digits(crop_padding=2, flip=True, limit_train=300)
    assert isinstance(data.train, TensorImages)
    assert isinstance(data.val, TensorImages)
    assert isinstance(data.test, TensorImages)
    model, module = Recorder(), ImageDataModule(data, batch_size=32)
    fitting = trainer(tmp_path)
    fitting.fit(model, datamodule=module)
    fitting.test(model, datamodule=module, verbose=False)

    assert [len(batch) for batch in model.seen["train"]] == [32] * 9  # 300 // 32, the rest is dropped
    kept = contains(torch.cat(model.seen["train"]), normalised(data, data.train))
    assert 0 < sum(kept) < 100  # about one in fifty offsets and flips changes nothing
    torch.testing.assert_close(model.seen["val"][-1], normalised(data, data.val))
    torch.testing.assert_close(torch.cat(model.seen["test"]), normalised(data, data.test))


def test_no_validation_images_are_no_validation(tmp_path: Path) -> None:
    model = Recorder()
    trainer(tmp_path).fit(model, datamodule=ImageDataModule(digits(val_fraction=0.0)))
    assert model.seen["val"] == []
    assert len(model.seen["train"]) == 1297 // 128


def test_a_resumed_run_sees_the_orders_it_would_have_seen(tmp_path: Path) -> None:
    def orders(model: Recorder) -> list[list[int]]:
        return [labels.tolist() for labels in model.labels]

    whole = Recorder()
    trainer(tmp_path, epochs=2).fit(whole, datamodule=ImageDataModule(digits()))
    first, second = Recorder(), Recorder()
    half = trainer(tmp_path)
    half.fit(first, datamodule=ImageDataModule(digits()))
    half.save_checkpoint(tmp_path / "half.ckpt")
    trainer(tmp_path, epochs=2).fit(second, datamodule=ImageDataModule(digits()), ckpt_path=tmp_path / "half.ckpt")
    assert orders(first) + orders(second) == orders(whole)
    assert orders(first) != orders(second)


def test_epochs_are_shuffled_by_seed_and_epoch_alone() -> None:
    shuffle = EpochSampler(100, seed=1)
    first, second = list(shuffle), list(shuffle)
    assert sorted(first) == sorted(second) == list(range(100))
    assert first != second
    torch.manual_seed(5)
    again = EpochSampler(100, seed=1)
    again.set_epoch(1)
    assert list(again) == second
    assert list(EpochSampler(100, seed=2)) != first


def test_loading_leaves_the_global_random_state_alone() -> None:
    module = ImageDataModule(digits())
    state = torch.get_rng_state()
    list(module.train_dataloader())
    list(module.eval_batches("val"))
    module.calibration_batches(10)
    assert torch.equal(torch.get_rng_state(), state)


def test_calibration_batches_are_unaugmented_train_images_chosen_by_the_seed() -> None:
    data = digits(crop_padding=2, flip=True)
    assert isinstance(data.train, TensorImages)
    module = ImageDataModule(data)
    batches = module.calibration_batches(250, batch_size=100, seed=3)
    assert [tuple(batch.shape) for batch in batches] == [(100, 1, 8, 8), (100, 1, 8, 8), (50, 1, 8, 8)]
    assert all(contains(torch.cat(batches), normalised(data, data.train)))
    assert len(torch.cat(batches).unique(dim=0)) == 250
    assert torch.equal(torch.cat(module.calibration_batches(250, 50, seed=3)), torch.cat(batches))
    assert not torch.equal(module.calibration_batches(250, 100, seed=4)[0], batches[0])
    assert module.example_inputs().shape == (1, 1, 8, 8)
    assert torch.equal(module.example_inputs(), ImageDataModule(data).example_inputs())


def test_eval_batches_are_a_whole_split_in_order() -> None:
    data = digits(crop_padding=2, flip=True)
    module = ImageDataModule(data, eval_batch_size=200)
    for name in ("train", "val", "test"):
        split = getattr(data, name)
        batches = list(module.eval_batches(name))  # type: ignore[arg-type]
        torch.testing.assert_close(torch.cat([images for images, _ in batches]), normalised(data, split))
        assert torch.equal(torch.cat([labels for _, labels in batches]), split.labels)
        assert max(len(labels) for _, labels in batches) <= 200


def test_data_are_opened_once_and_late() -> None:
    opened = []

    def open_digits() -> ImageData:
        opened.append(1)
        return digits(limit_train=20)

    module = ImageDataModule(open_digits, batch_size=128)
    assert opened == []
    module.prepare_data()
    module.setup("fit")
    assert [len(labels) for _, labels in module.train_dataloader()] == [20]  # less than a batch: nothing is dropped
    assert opened == [1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size=0 is not positive"),
        ({"eval_batch_size": -1}, "eval_batch_size=-1 is not positive"),
        ({"num_workers": -1}, "num_workers=-1 is negative: write 0"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ImageDataModule(digits, **options)  # type: ignore[arg-type]


def test_wrong_questions_are_refused() -> None:
    module = ImageDataModule(digits())
    with pytest.raises(ValueError, match="n_images=5000 is not possible: the train split has 1167 images"):
        module.calibration_batches(5000)
    with pytest.raises(ValueError, match="split='valid' is unknown: write 'train', 'val' or 'test'"):
        module.eval_batches("valid")  # type: ignore[arg-type]


@pytest.mark.slow
def test_the_shared_resnet20_is_as_accurate_as_it_is_said_to_be(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    shared = SHARED
    if not (shared / "data").is_dir():
        pytest.skip(f"needs the CIFAR-10 copy and weights in {shared} (set QAT_SHARED)")
    monkeypatch.setenv("QAT_CACHE_DIR", str(tmp_path))
    model = ResNetCifar(20)
    load_weights(model, shared / "checkpoints" / "resnet20_cifar10_jpeg.safetensors")
    model.eval()
    with torch.no_grad():
        batches = ImageDataModule(cifar10(shared / "data")).eval_batches("test")
        correct = sum(int((model(images).argmax(1) == labels).sum()) for images, labels in batches)
    assert correct == pytest.approx(8792, abs=2)  # 87.92 % of 10,000; a tie may fall otherwise on another machine


def test_images_have_the_precision_of_the_network(tmp_path: Path) -> None:
    module = Recorder()
    fitting = trainer(tmp_path, precision="bf16-true", limit_train_batches=1, limit_val_batches=1)
    fitting.fit(module, datamodule=ImageDataModule(digits(limit_train=20), batch_size=10))
    assert {x.dtype for x in (*module.seen["train"], *module.seen["val"])} == {torch.bfloat16}
    assert module.labels[0].dtype == torch.int64
