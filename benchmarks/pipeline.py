"""Time to make a training batch over the time of a training step: ResNet-20 on images of CIFAR-10's size, batch 128.

The batch is what training sees: shuffled, cropped and flipped at random, normalised. The images are noise, so that no data set
is needed. The bar is 3 % of a float step. About one minute on two threads of a CPU.

python -m benchmarks.pipeline --threads 2
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from benchmarks.measure import interleaved, ratios
from benchmarks.record import RESULTS, check_device, write
from benchmarks.step_time import steps
from benchmarks.subject import SUBJECTS
from qat.data import ImageData, Sample, TensorImages
from qat.data.cifar10 import CLASSES, MEAN, STD
from qat.experiment.datamodule import ImageDataModule


def noise(images: int) -> ImageData:
    """A data set like CIFAR-10, with its augmentation."""
    everything = TensorImages(torch.randint(256, (images, 3, 32, 32), dtype=torch.uint8), torch.randint(10, (images,)))
    return ImageData(
        name="noise",
        label="noise",
        classes=CLASSES,
        mean=MEAN,
        std=STD,
        image_shape=(3, 32, 32),
        train=everything,
        val=everything,
        test=everything,
        crop_padding=4,
        flip=True,
    )


def batches(data: ImageData, batch: int, device: str) -> Callable[[], Sample]:
    """A call that returns the next training batch on the device, epoch after epoch."""
    loader = ImageDataModule(data, batch_size=batch).train_dataloader()
    transform = data.batch_transform().to(device).train()

    def endless() -> Iterator[Sample]:
        while True:
            yield from loader

    source = endless()

    def worker_process() -> Sample:
        images, labels = next(source)
        return transform(images.to(device, non_blocking=True)), labels.to(device, non_blocking=True)

    return worker_process


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--images", type=int, default=50_000)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--out", type=Path, help="default: results/pipeline/<device>.json")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    device = check_device(options.device)
    training = steps(SUBJECTS["ResNet-20"], ["w8a8"], "float32", device, options.batch)
    work: dict[str, Callable[[], object]] = {**training, "batch": batches(noise(options.images), options.batch, device)}
    rows = ratios(interleaved(work, options.rounds, device), "float")
    write(options.out or RESULTS / f"pipeline/{device}.json", {"batch": options.batch, "candidates": rows}, device)
    for name, row in rows.items():
        print(f"{name:8} {1000 * row['seconds']:9.2f} ms   {row['ratio']:7.4f} x a float step")


if __name__ == "__main__":
    main()
