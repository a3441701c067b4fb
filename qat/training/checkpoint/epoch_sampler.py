"""An order of the training images that a resumed run finds again."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Generator
from torch.utils.data import DistributedSampler


class EpochSampler(DistributedSampler[int]):
    """`n` indices in an order that depends on the seed and the epoch alone, so that a resumed run shuffles as the first one.

    Of several processes each takes every `world_size`-th index, so that together they see in one step what one process
    sees with a batch as large as theirs together; up to world_size - 1 images are left out of an epoch. Lightning calls
    `set_epoch`, and does not split what is a DistributedSampler already; without it every pass is the next epoch.
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
