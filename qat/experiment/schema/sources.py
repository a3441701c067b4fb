"""What is trained, and on which images: `data`, `model`."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from qat.experiment.schema.nodes import Node
from qat.experiment.schema.values import Images, Seed, ShareBelowOne, Text

Pixels = Annotated[int, Field(ge=0, le=1024)]


class Data(Node):
    """Images and their classes (a file of configs/data). A function of your own returns a `qat.data.ImageData`."""

    TARGETS: ClassVar[tuple[str, ...]] = ("qat.data.digits",)

    val_fraction: ShareBelowOne = 0.1
    """fraction of the training images used for validation, if there are no validation images"""
    split_seed: Seed = 0
    """decides which images validate"""
    limit_train: Images | None = None
    """at most this many images, for quick runs"""
    limit_test: Images | None = None
    """at most this many test images; null: all"""
    crop_padding: Pixels = 0
    """pixels of random shift"""
    flip: bool = False
    """mirror half of the training images"""
    pad_mode: Literal["zeros", "reflect"] = "zeros"
    """what a shifted image shows at its edge"""


class KnownData(Data):
    """MNIST or CIFAR-10, downloaded if missing."""

    TARGETS: ClassVar[tuple[str, ...]] = ("qat.data.mnist", "qat.data.cifar10")

    root: Text | None = None
    """its folder; null: the environment variable QAT_DATA_DIR, else ./data"""


class ImageFolder(KnownData):
    """Your own images: root/train/<class>/*, root/test/<class>/* and, if you like, root/val/<class>/*."""

    TARGETS: ClassVar[tuple[str, ...]] = ("qat.data.image_folder",)

    image_size: Annotated[int, Field(ge=1, le=4096)] | None = None
    """pixels per side; null: small images as they are, larger ones at 224"""
    channels: Literal[1, 3] = 3
    """1: read as grey images"""
    mean: list[Annotated[float, Field(ge=-10, le=10)]] | None = None
    """per channel, for images in 0..1; null: ImageNet's (grey: 0.5)"""
    std: list[Annotated[float, Field(gt=0, le=10)]] | None = None
    """per channel"""


class Network(Node):
    """A network (a file of configs/model). One of your own takes num_classes and in_channels."""

    TARGETS: ClassVar[tuple[str, ...]] = ("qat.models.LeNet5",)
    GIVEN: ClassVar = {"num_classes": "the data decide, leave it out", "in_channels": "the data decide, leave it out"}
    NO_ARGUMENTS: ClassVar[tuple[str, ...]] = ("checkpoint",)

    checkpoint: Text | None = None
    """float weights: .safetensors, or a checkpoint of Lightning or torch"""


class ResNetCifar(Network):
    """A ResNet for small images."""

    TARGETS: ClassVar[tuple[str, ...]] = ("qat.models.ResNetCifar",)

    depth: Annotated[int, Field(ge=8, le=1202)] = 20
    """layers, 6n + 2: 8, 14, 20"""
    width: Annotated[int, Field(ge=1, le=1024)] = 16
    """channels of the first stage"""


class TorchvisionModel(Network):
    """A classifier of torchvision."""

    TARGETS: ClassVar[tuple[str, ...]] = ("qat.models.torchvision_model",)

    name: Text = "resnet18"
    """as in torchvision.models: resnet18, mobilenet_v2"""
    weights: Text | None = None
    """null: random; DEFAULT or IMAGENET1K_V1: downloaded"""
