from pathlib import Path
from urllib.error import URLError

import pytest
import torch
import torchvision

from qat.models import torchvision_model


def test_an_unknown_name_is_answered_with_close_ones() -> None:
    with pytest.raises(ValueError, match=r"model.name='mobilnet_v2' is not a classifier .*: write .*mobilenet_v2"):
        torchvision_model("mobilnet_v2")
    with pytest.raises(ValueError, match=r"model.name='fcn_resnet50' is not a classifier"):  # a segmentation model
        torchvision_model("fcn_resnet50")


def test_unknown_weights_are_answered_with_the_known_ones() -> None:
    with pytest.raises(
        ValueError, match=r"model.weights='IMAGENET' is not one of resnet18's: write IMAGENET1K_V1, DEFAULT"
    ):
        torchvision_model("resnet18", weights="IMAGENET")


def test_grey_images_are_refused() -> None:
    with pytest.raises(ValueError, match="in_channels=1, but resnet18 takes RGB images"):
        torchvision_model("resnet18", in_channels=1)


def test_weights_that_cannot_be_downloaded_are_one_sentence(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise URLError("Name or service not known")

    monkeypatch.setattr("torch.hub.download_url_to_file", refuse)
    monkeypatch.setattr("torch.hub.get_dir", lambda: str(tmp_path))
    with pytest.raises(FileNotFoundError) as caught:
        torchvision_model("resnet18", weights="DEFAULT")
    message = str(caught.value)
    assert "the weights DEFAULT of resnet18 cannot be downloaded" in message
    assert f"put them at {tmp_path}/checkpoints/resnet18-f37072fd.pth, or set model.weights=null." in message


@pytest.mark.parametrize("num_classes", [7, 1000])
def test_pretrained_weights_keep_their_head_only_for_as_many_classes(
    monkeypatch: pytest.MonkeyPatch, num_classes: int
) -> None:
    pretrained = torchvision.models.squeezenet1_1()
    get_model = torchvision.models.get_model

    def downloaded(name: str, weights: str | None = None, **options: int) -> torch.nn.Module:
        return pretrained if weights else get_model(name, **options)

    monkeypatch.setattr(torchvision.models, "get_model", downloaded)
    model = torchvision_model("squeezenet1_1", num_classes, weights="IMAGENET1K_V1").state_dict()
    for name, value in pretrained.state_dict().items():
        if name.startswith("classifier.1") and num_classes != 1000:
            assert model[name].shape[0] == num_classes
        else:
            assert torch.equal(model[name], value)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["googlenet", "inception_v3"])
def test_auxiliary_heads_are_left_out(name: str) -> None:
    model = torchvision_model(name, num_classes=7)
    assert model.train()(torch.randn(2, 3, 299, 299)).shape == (2, 7)
