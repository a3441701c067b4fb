import numpy as np
import pytest
import torch
import torch.fx
from torch import nn

from qat.models import LeNet5, ResNetCifar, torchvision_model
from qat.models.resnet_cifar import BasicBlock


@pytest.mark.parametrize(
    ("model", "shape"),
    [
        (LeNet5(num_classes=7, in_channels=3), (3, 28, 28)),
        (ResNetCifar(8, num_classes=7, in_channels=1), (1, 8, 8)),
        (ResNetCifar(14, num_classes=7, width=6), (3, 33, 41)),
        (torchvision_model("squeezenet1_1", num_classes=7), (3, 64, 64)),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_network_gives_logits_and_can_be_traced(model: nn.Module, shape: tuple[int, ...]) -> None:
    images = torch.randn(4, *shape)
    model.eval()
    logits = model(images)
    assert logits.shape == (4, 7)
    assert torch.equal(torch.fx.symbolic_trace(model)(images), logits)


@pytest.mark.parametrize(("depth", "parameters"), [(20, 0.27e6), (32, 0.46e6), (44, 0.66e6), (56, 0.85e6)])
def test_a_resnet_is_as_large_as_in_the_paper(depth: int, parameters: float) -> None:
    model = ResNetCifar(depth)
    assert round(sum(p.numel() for p in model.parameters()) / 1e4) * 1e4 == pytest.approx(parameters)
    weighted = [m for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    assert len(weighted) == depth


def test_the_shortcut_takes_every_other_pixel_and_fills_channels_with_zeros() -> None:
    block = BasicBlock(4, 8, stride=2)
    nn.init.zeros_(block.bn2.weight)  # the convolutions give zero: what is left is relu(shortcut)
    x = torch.randn(2, 4, 6, 6).abs()
    expected = np.zeros((2, 8, 3, 3), dtype=np.float32)
    expected[:, 2:6] = x.numpy()[:, :, ::2, ::2]
    np.testing.assert_array_equal(block(x).detach().numpy(), expected)


@pytest.mark.parametrize("depth", [7, 18, 2])
def test_a_depth_that_is_not_6n_plus_2_is_refused(depth: int) -> None:
    with pytest.raises(ValueError, match=rf"depth={depth} is not 6n \+ 2: write 8, 14, 20"):
        ResNetCifar(depth)


def test_a_width_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="width=0 is not possible"):
        ResNetCifar(8, width=0)
