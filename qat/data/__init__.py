"""Image data sets as uint8, and the transform from their batches to network inputs. No quantization, no Lightning."""

from qat.data.batch_transform import BatchTransform
from qat.data.cifar10 import cifar10
from qat.data.digits import digits
from qat.data.image_data import ImageData, ImageDataset
from qat.data.image_folder import image_folder
from qat.data.lazy_images import LazyImages
from qat.data.mnist import mnist
from qat.data.split import Split
from qat.data.tensor_images import Sample, TensorImages, collate

__all__ = [
    "BatchTransform",
    "ImageData",
    "ImageDataset",
    "LazyImages",
    "Sample",
    "Split",
    "TensorImages",
    "cifar10",
    "collate",
    "digits",
    "image_folder",
    "mnist",
]
