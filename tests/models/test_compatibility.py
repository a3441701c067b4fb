import pytest
import torch
from torch import Tensor, nn

from qat.models import LeNet5, ResNetCifar, check_model


class Pair(LeNet5):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        return super().forward(x), x


def test_a_fitting_model_passes_and_stays_as_it_was() -> None:
    model = ResNetCifar(8)
    model.train()
    model.bn1.eval()  # frozen
    before = {name: value.clone() for name, value in model.state_dict().items()}
    check_model(model, (3, 32, 32), 10)
    assert model.training
    assert not model.bn1.training
    assert model.layer1.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_images_of_another_size_are_refused_in_one_sentence() -> None:
    model = LeNet5().train()
    with pytest.raises(
        ValueError, match=r"LeNet5 cannot take images of shape \(1, 32, 32\) \(.*\): choose a model"
    ) as caught:
        check_model(model, (1, 32, 32), 10)
    assert "\n" not in str(caught.value)
    assert model.training
    with pytest.raises(ValueError, match=r"ResNetCifar cannot take images of shape \(1, 28, 28\)"):
        check_model(ResNetCifar(8), (1, 28, 28), 10)


def test_another_number_of_classes_is_refused() -> None:
    with pytest.raises(
        ValueError, match=r"LeNet5 returns \(2, 10\) for 2 images, the data have 7 classes: .*num_classes=7"
    ):
        check_model(LeNet5(), (1, 28, 28), 7)


def test_more_than_logits_is_refused() -> None:
    with pytest.raises(ValueError, match="Pair returns a tuple: wrap it"):
        check_model(Pair(), (1, 28, 28), 10)


def test_the_models_own_dtype_is_used() -> None:
    check_model(LeNet5().double(), (1, 28, 28), 10)
    check_model(nn.Flatten(), (1, 1, 10), 10)  # nothing to learn, nothing to ask for a dtype
