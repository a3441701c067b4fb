"""Networks, their checkpoints, and the check that they fit the data. No quantization in here."""

from qat.models.check import check_model
from qat.models.checkpoint import load_checkpoint, save_checkpoint
from qat.models.lenet import LeNet5
from qat.models.resnet_cifar import ResNetCifar
from qat.models.torchvision_model import torchvision_model

__all__ = ["LeNet5", "ResNetCifar", "check_model", "load_checkpoint", "save_checkpoint", "torchvision_model"]
