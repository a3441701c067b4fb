"""Time to make a training batch over the time of a training step: ResNet-20 on images of CIFAR-10's size, batch 128.

The batch is a training batch: shuffled, cropped and flipped at random, normalised. The images are noise, so that no data set is
needed. The target is 3 % of a float step. About one minute on two threads of a CPU.

python -m benchmarks.pipeline --threads 2
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from benchmarks.command_line import argument_parser, parse_options
from benchmarks.measurement_file import RESULTS, write_measurement
from benchmarks.network_steps import training_steps
from benchmarks.networks import NETWORKS
from benchmarks.timing import ratios_to, time_in_turns
from qat.data import ImageData, Sample, TensorImages
from qat.data.cifar10 import CLASSES, MEAN, STD
from qat.experiment.datamodule import ImageDataModule


def noise(n: int) -> ImageData:
    """A data set of `n` random images with the shape and augmentation of CIFAR-10."""
    images = TensorImages(torch.randint(256, (n, 3, 32, 32), dtype=torch.uint8), torch.randint(10, (n,)))
    return ImageData(
        name="noise",
        label="noise",
        classes=CLASSES,
        mean=MEAN,
        std=STD,
        image_shape=(3, 32, 32),
        train=images,
        val=images,
        test=images,
        crop_padding=4,
        flip=True,
    )


def batch_maker(data: ImageData, batch: int, device: str) -> Callable[[], Sample]:
    """A call that returns the next training batch on the device, epoch after epoch."""
    loader = ImageDataModule(data, batch_size=batch).train_dataloader()
    transform = data.batch_transform().to(device).train()

    def repeat_epochs() -> Iterator[Sample]:
        while True:
            yield from loader

    samples = repeat_epochs()

    def next_batch() -> Sample:
        images, labels = next(samples)
        return transform(images.to(device, non_blocking=True)), labels.to(device, non_blocking=True)

    return next_batch


def main() -> None:
    parser = argument_parser(__doc__, with_device=True)
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--images", type=int, default=50_000)
    parser.add_argument("--out", type=Path, help="default: results/pipeline/<device>.json")
    options = parse_options(parser)
    device = options.device
    steps = training_steps(NETWORKS["ResNet-20"], ["w8a8"], "float32", device, options.batch)
    make_batch = batch_maker(noise(options.images), options.batch, device)
    candidates: dict[str, Callable[[], object]] = {**steps, "batch": make_batch}
    rows = ratios_to("float", time_in_turns(candidates, options.rounds, device))
    out = options.out or RESULTS / f"pipeline/{device}.json"
    write_measurement(out, {"batch": options.batch, "candidates": rows}, device)
    for name, row in rows.items():
        print(f"{name:8} {1000 * row['seconds']:9.2f} ms   {row['ratio']:7.4f} x a float step")


if __name__ == "__main__":
    main()
