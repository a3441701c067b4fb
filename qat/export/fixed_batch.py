"""Runtimes whose files have one size of the batch: larger batches in parts, the last one filled up."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from qat.export.file_network import FileNetwork, tensors_for


class FixedBatchNetwork(FileNetwork):
    """A file whose inputs have the sizes of the example; a subclass sets `sizes` and defines `run`.

    Attributes:
        sizes: the size of the first axis of each input in the file.
    """

    sizes: list[int]

    @property
    def fixed_batch(self) -> int:
        """The batch that the file was written with."""
        return int(self.sizes[0])

    def run(self, tensors: list[Tensor]) -> Sequence[Tensor]:
        """The outputs of a batch of the file's size; the next call may overwrite them."""
        raise TypeError(f"{type(self).__name__} must define run")

    def outputs(self, inputs: tuple[object, ...]) -> list[Tensor]:
        """All outputs of a batch of any size."""
        return run_in_parts(self.run, inputs, self.sizes)


def run_in_parts(
    run: Callable[[list[Tensor]], Sequence[Tensor]], inputs: Sequence[object], sizes: Sequence[int]
) -> list[Tensor]:
    """The outputs of a batch of any size.

    Args:
        run: runs a batch of the file's size; the next call may overwrite its outputs.
        inputs: arguments, nested or not; those that are not tensors are constants of the file.
        sizes: the size of the first axis of each input in the file; that of the first input is the batch.

    Raises:
        ValueError: there are more or fewer tensors than the file has inputs.
    """
    tensors = tensors_for([f"input {i}" for i in range(len(sizes))], inputs)
    samples, size = len(tensors[0]), sizes[0]
    batched = [len(x) == samples and n == size for x, n in zip(tensors, sizes, strict=True)]
    parts = []
    for start in range(0, samples, size):
        of_part = [_filled(x[start : start + size], size) if b else x for x, b in zip(tensors, batched, strict=True)]
        outputs = run([(x.float() if x.is_floating_point() else x).detach().cpu().contiguous() for x in of_part])
        parts.append([y[: samples - start].clone() for y in outputs])
    return [torch.cat(outputs) for outputs in zip(*parts, strict=True)]


def _filled(x: Tensor, size: int) -> Tensor:
    return x if len(x) == size else torch.cat([x, x[-1:].expand(size - len(x), *x.shape[1:])])
