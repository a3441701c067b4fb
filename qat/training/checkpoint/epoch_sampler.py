"""An order of the training images that a resumed run reproduces."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Generator
from torch.utils.data import DistributedSampler


class EpochSampler(DistributedSampler[int]):
    """The indices of `n` images in an order that depends on seed and epoch alone.

    Each of several processes takes every `world_size`-th index, so in one step they see the images that a single process sees
    with a batch as large as theirs together; up to `world_size - 1` images are left out of an epoch. Lightning calls
    `set_epoch`, and does not split a DistributedSampler again. Without `set_epoch`, every pass is the next epoch.

    Args:
        n: the number of images.
        seed: of the order.
        world_size: the number of processes.
        rank: which of them this is.
    """

    def __init__(self, n: int, seed: int, world_size: int = 1, rank: int = 0) -> None:
        super().__init__(range(n), world_size, rank, seed=seed, drop_last=True)  # type: ignore[arg-type]
        self.n = n

    def __len__(self) -> int:
        return self.n // self.num_replicas

    def __iter__(self) -> Iterator[int]:
        generator = Generator().manual_seed((self.seed << 20) + self.epoch)
        self.epoch += 1
        order = torch.randperm(self.n, generator=generator).tolist()
        return iter(order[self.rank : len(self) * self.num_replicas : self.num_replicas])
