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
    """fraction of the training images that validate, if there are no validation images"""
    split_seed: Seed = 0
    """decides which training images validate"""
    limit_train: Images | None = None
    """use at most this many training images, for quick runs; null: all"""
    limit_test: Images | None = None
    """use at most this many test images; null: all"""
    crop_padding: Pixels = 0
    """shift training images at random by up to this many pixels"""
    flip: bool = False
    """mirror half of the training images left-right"""
    pad_mode: Literal["zeros", "reflect"] = "zeros"
    """what a shifted image shows at its edge: black, or its mirror image"""


class KnownData(Data):
    """MNIST or CIFAR-10, downloaded if missing."""

    TARGETS: ClassVar[tuple[str, ...]] = ("qat.data.mnist", "qat.data.cifar10")

    root: Text | None = None
    """the folder of the data set; null: the environment variable QAT_DATA_DIR, else ./data"""


class ImageFolder(KnownData):
    """Your own images: root/train/<class>/*, root/test/<class>/* and, if you like, root/val/<class>/*."""

    TARGETS: ClassVar[tuple[str, ...]] = ("qat.data.image_folder",)

    image_size: Annotated[int, Field(ge=1, le=4096)] | None = None
    """pixels per side; null keeps small images as they are, and scales larger ones to 224"""
    channels: Literal[1, 3] = 3
    """1 reads grey images, 3 reads RGB"""
    mean: list[Annotated[float, Field(ge=-10, le=10)]] | None = None
    """mean of each channel, for images in 0..1; null: ImageNet's (grey: 0.5)"""
    std: list[Annotated[float, Field(gt=0, le=10)]] | None = None
    """standard deviation of each channel; null: as for mean"""


class Network(Node):
    """A network (a file of configs/model). A class of your own takes num_classes and in_channels."""

    TARGETS: ClassVar[tuple[str, ...]] = ("qat.models.LeNet5",)
    GIVEN: ClassVar = {"num_classes": "the data decide, leave it out", "in_channels": "the data decide, leave it out"}
    NO_ARGUMENTS: ClassVar[tuple[str, ...]] = ("checkpoint",)

    checkpoint: Text | None = None
    """file with float weights: .safetensors, or a checkpoint of Lightning or torch"""


class ResNetCifar(Network):
    """A ResNet for small images."""

    TARGETS: ClassVar[tuple[str, ...]] = ("qat.models.ResNetCifar",)

    depth: Annotated[int, Field(ge=8, le=1202)] = 20
    """number of layers, 6n + 2: 8, 14, 20, ..."""
    width: Annotated[int, Field(ge=1, le=1024)] = 16
    """channels of the first stage"""


class TorchvisionModel(Network):
    """A classifier of torchvision."""

    TARGETS: ClassVar[tuple[str, ...]] = ("qat.models.torchvision_model",)

    name: Text = "resnet18"
    """its name in torchvision.models: resnet18, mobilenet_v2, ..."""
    weights: Text | None = None
    """pretrained weights, DEFAULT or a name such as IMAGENET1K_V1, which are downloaded; null: random weights"""
