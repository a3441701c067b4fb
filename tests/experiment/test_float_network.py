from dataclasses import replace
from pathlib import Path

import pytest
import torch
from omegaconf import DictConfig
from torch import Tensor, nn

from qat.data import TensorImages, digits
from qat.experiment import float_network
from qat.models import save_weights
from tests.experiment.configurations import changed, composed
from tests.training.user_modules import LIGHTNING

pytestmark = LIGHTNING

QUICK = ("float.epochs=1", "trainer.accelerator=cpu")


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QAT_CACHE_DIR", str(tmp_path / "cache"))


def load(config: DictConfig, tmp_path: Path) -> tuple[nn.Module, str]:
    data = digits(limit_train=200)
    torch.manual_seed(1)
    network = float_network.build(config.model, data)
    return network, float_network.load_or_train(network, config, data, tmp_path)


def test_a_network_is_trained_once_and_cached(tmp_path: Path) -> None:
    first, source = load(composed(*QUICK), tmp_path)
    assert source.startswith("trained for 1 epoch in ")
    second, again = load(composed(*QUICK, "policy=w2a2", "optim.lr=0.5", "data.limit_test=10"), tmp_path)
    assert again.startswith(f"trained before, cached in {tmp_path / 'cache' / 'float'}")
    assert all(
        torch.equal(a, b) for a, b in zip(first.state_dict().values(), second.state_dict().values(), strict=True)
    )


def test_a_broken_cached_file_is_trained_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    first, _ = load(composed(*QUICK), tmp_path)
    file = next((tmp_path / "cache" / "float").iterdir())
    whole = file.read_bytes()
    file.write_bytes(whole[:100])
    second, source = load(composed(*QUICK), tmp_path)
    assert source.startswith("trained for")
    assert "the cached float network is unusable" in caplog.text
    assert file.read_bytes() == whole
    assert all(
        torch.equal(a, b) for a, b in zip(first.state_dict().values(), second.state_dict().values(), strict=True)
    )


def test_a_float_training_that_diverged_ends_the_run(tmp_path: Path) -> None:
    message = (
        r"The float training diverged, .* more than 1,000,000 times as large as before: lower float.optim.lr. Its val"
    )
    with pytest.raises(ValueError, match=message):
        load(composed(*QUICK, "float.optim.lr=1e30"), tmp_path)
    assert not (tmp_path / "cache").exists()


def test_the_hash_covers_what_decides_the_weights_and_nothing_else() -> None:
    data = digits(limit_train=50)
    reference = float_network.fingerprint(composed(*QUICK), data)
    same = ("policy=w2a2", "optim.lr=0.9", "trainer.max_epochs=99", "distillation.weight=0.5", "logger=tensorboard")
    assert float_network.fingerprint(composed(*QUICK, *same), data) == reference
    for other in ("seed=1", "model.width=16", "float.epochs=2", "float.optim.lr=0.2", "batch_size=64"):
        assert float_network.fingerprint(changed(*QUICK, other), data) != reference
    assert isinstance(data.train, TensorImages)
    pixels = data.train.images.clone()
    pixels[0, 0, 0, 0] += 1
    for altered in (
        replace(data, train=TensorImages(pixels, data.train.labels)),
        replace(data, train=TensorImages(data.train.images, data.train.labels.flip(0))),
        replace(data, crop_padding=1),
        replace(data, mean=(0.1,)),
    ):
        assert float_network.fingerprint(composed(*QUICK), altered) != reference
    assert float_network.fingerprint(composed(*QUICK), replace(data, test=data.val)) == reference


class Repeated:
    """A data set of the user's own: one image, again and again."""

    def __init__(self, grey: int, label: int = 1) -> None:
        self.sample = torch.full((1, 8, 8), grey, dtype=torch.uint8), torch.tensor(label)

    def __len__(self) -> int:
        return 3

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.sample


def test_the_hash_covers_the_images_of_a_data_set_of_the_users_own() -> None:
    data = digits(limit_train=50)
    hashes = [
        float_network.fingerprint(composed(*QUICK), replace(data, train=train))
        for train in (Repeated(1), Repeated(1), Repeated(2), Repeated(1, label=2))
    ]
    assert [hashes[0] == other for other in hashes] == [True, True, False, False]


def test_weights_of_a_model_of_the_users_own_are_a_source() -> None:
    """Only of torchvision's weights is it known how many classes they have."""
    config = composed(*QUICK, "model={_target_: my_module.Network}", "+model.weights=best", "float.epochs=0")
    float_network.check_source(config, digits(limit_train=50))


def test_a_checkpoint_comes_before_training(tmp_path: Path) -> None:
    data = digits(limit_train=50)
    saved = float_network.build(composed().model, data)
    save_weights(saved, tmp_path / "mine.safetensors")
    config = composed(*QUICK, f"model.checkpoint={tmp_path}/mine.safetensors")
    float_network.check_source(config, data)
    network, source = load(config, tmp_path)
    assert source == f"from {tmp_path}/mine.safetensors"
    assert torch.equal(network.state_dict()["conv1.weight"], saved.state_dict()["conv1.weight"])
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["float.epochs=0"], "there is no float network: set model.checkpoint=PATH, or float.epochs"),
        (
            ["model.checkpoint=/nowhere.ckpt"],
            "model.checkpoint=/nowhere.ckpt does not exist: give a .safetensors or .ckpt",
        ),
        (
            ["model=torchvision", "model.weights=DEFAULT", "float.epochs=0"],
            "resnet18's weights have 1000 classes, the data 10, so its head is new: set float.epochs",
        ),
    ],
)
def test_no_source_of_float_weights_is_said(overrides: list[str], message: str) -> None:
    with pytest.raises((ValueError, FileNotFoundError), match=message.replace(".", r"\.")):
        float_network.check_source(composed(*overrides), digits(limit_train=50))
