"""Several processes that train one network: ranks, merged observations, and checks that all quantizers are equal.

Everything here uses the default process group of torch.distributed. Without one there is a single process, and nothing is
sent.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from qat.observers import Observer
from qat.quantizers import Quantizer
from qat.torch_private import tree_map_only
from qat.transform.mode import quantizers

T = TypeVar("T")


def world_size() -> int:
    """The number of processes; 1 without a process group."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """The number of this process, counted from 0."""
    return dist.get_rank() if world_size() > 1 else 0


def shard(batches: Iterable[T]) -> Iterator[T]:
    """The batches of this process: every world_size-th of `batches`, which are the same in every process.

    Batches stay whole, because a sum in a matrix product may depend on how many images are multiplied at once, and all
    processes together must observe exactly what one would.
    """
    return islice(batches, rank(), None, world_size())


def gather(value: T) -> list[T]:
    """The `value` of every process, by rank: plain data and CPU tensors. All processes must call it."""
    if world_size() == 1:
        return [value]
    values: list[Any] = [None] * world_size()
    dist.all_gather_object(values, value)
    return values


def check_same_quantizers(names: Iterable[str]) -> None:
    """Check that every process is about to calibrate the same quantizers.

    Raises:
        RuntimeError: they differ; the message names a quantizer and the ranks that lack it.
    """
    names_by_rank = [set(names) for names in gather(sorted(names))]
    for name in sorted(set().union(*names_by_rank)):
        if lacking := [rank for rank, names in enumerate(names_by_rank) if name not in names]:
            raise RuntimeError(
                f"quantizer {name!r} waits for calibration, but not on rank {_listed(lacking)}: prepare the same network and "
                "load the same checkpoint in every process."
            )


def merge_observers(uncalibrated: Iterable[Quantizer]) -> None:
    """Give each quantizer's observer the observations of all processes, merged in the order of the ranks.

    All processes get the same bits. A process may have seen no data. All processes must call it, with the same quantizers in
    the same order.
    """
    if world_size() == 1:
        return
    observers = [(observer, q.initialized.device) for q in uncalibrated for observer in q.observers()]
    everyone = gather([_on(torch.device("cpu"), _statistics(observer)) for observer, _ in observers])
    for (observer, device), *seen in zip(observers, *everyone, strict=True):
        observer.reset()
        for statistics in seen:
            other = copy.copy(observer)
            vars(other).update(_on(device, statistics))
            observer.merge(other)


def check_quantizers_equal(model: nn.Module, when: str) -> None:
    """Check that every process has the same bits in all parameters and buffers of all quantizers of `model`.

    This sends a digest of 32 bytes per process; names are exchanged only after a difference. All processes must call it.

    Args:
        when: the start of the error message, such as "after calibration".

    Raises:
        RuntimeError: a quantizer differs; the message names it and the ranks that differ from rank 0.
    """
    if world_size() == 1:
        return
    digests = {name: _digest(quantizer) for name, quantizer in quantizers(model).items()}
    whole = hashlib.sha256(repr(digests).encode()).digest()
    device = next(iter(quantizers(model).values())).initialized.device
    mine = torch.frombuffer(bytearray(whole), dtype=torch.uint8).to(device)
    everyone = [torch.empty_like(mine) for _ in range(world_size())]
    dist.all_gather(everyone, mine)
    if all(torch.equal(mine, other) for other in everyone):
        return
    found = gather(digests)
    for name in dict.fromkeys(name for digests in found for name in digests):
        if differing := [r for r, digests in enumerate(found) if digests.get(name) != found[0].get(name)]:
            raise RuntimeError(
                f"{when}, quantizer {name!r} differs between rank 0 and rank {_listed(differing)}: change quantizers only in "
                "ways that every process computes alike, from weights, synchronized gradients or the epoch."
            )


def _statistics(observer: Observer) -> dict[str, Any]:
    """The part of an observer's state that depends on data: all but its spec."""
    return {name: value for name, value in vars(observer).items() if name != "spec"}


def _on(device: torch.device, statistics: dict[str, Any]) -> dict[str, Any]:
    moved: dict[str, Any] = tree_map_only(Tensor, lambda x: x.to(device), statistics)
    return moved


def _digest(quantizer: Quantizer) -> str:
    """A digest of every bit that decides how the quantizer rounds, now and after the next step."""
    digest = hashlib.sha256()
    for name, tensor in quantizer.state_dict().items():
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _listed(ranks: list[int]) -> str:
    return ", ".join(map(str, ranks))
