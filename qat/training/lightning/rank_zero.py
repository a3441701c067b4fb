"""What process 0 of a fit does or has for all processes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import lightning as L
import torch.distributed as dist
from torch import nn

T = TypeVar("T")

WAITING_TIME = timedelta(days=365)
"""How long the other processes wait for process 0: measuring all networks takes longer than a collective may."""


def copy_from_rank_zero(trainer: L.Trainer, network: nn.Module) -> None:
    """Give `network`, in place, the weights that it has in process 0. DDP does so for its own module alone."""
    if trainer.world_size > 1:
        network.load_state_dict(trainer.strategy.broadcast(network.state_dict()))


def run_on_rank_zero(trainer: L.Trainer, work: Callable[[], T]) -> T:
    """Run `work` in process 0 while the others wait without a time limit. All processes must call this.

    To `work` there is one process: metrics, loops and barriers in it do not wait for others.

    Returns:
        The value of `work`, which must be picklable, in all processes.

    Raises:
        RuntimeError: in the other processes, if `work` raised in process 0.
    """
    if trainer.world_size == 1:
        return work()
    group: Any = dist.new_group(backend="gloo", timeout=WAITING_TIME)
    message: list[Any] = [None, "it ended"]  # the value, the failure
    try:
        if trainer.is_global_zero:
            with _process_group_hidden():
                message = [work(), ""]
    except BaseException as error:
        message = [None, f"{type(error).__name__}: {error}"]
        raise
    finally:
        dist.broadcast_object_list(message, src=0, group=group)
        dist.destroy_process_group(group)
    value: T
    value, failure = message
    if failure:
        raise RuntimeError(f"process 0 failed, so this one stops, too ({failure})")
    return value


@contextmanager
def _process_group_hidden() -> Iterator[None]:
    """Inside the `with` block, code that asks whether there are other processes is told that there are none."""
    is_initialized = dist.is_initialized
    dist.is_initialized = lambda: False
    try:
        yield
    finally:
        dist.is_initialized = is_initialized
