"""Float networks, their weights on disk, and the check that a model fits its data. No quantization."""

from qat.models.compatibility import check_model
from qat.models.lenet import LeNet5
from qat.models.resnet_cifar import ResNetCifar
from qat.models.torchvision_model import torchvision_model
from qat.models.weights import load_weights, save_weights

__all__ = ["LeNet5", "ResNetCifar", "check_model", "load_weights", "save_weights", "torchvision_model"]
