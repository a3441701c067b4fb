"""What several processes of one fit must agree on, and what only one of them does."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import lightning as L
import torch.distributed as dist
from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy, Strategy, XLAStrategy
from lightning.pytorch.strategies.launchers import _MultiProcessingLauncher
from torch import nn

T = TypeVar("T")

AS_LONG_AS_IT_TAKES = timedelta(days=365)


def check_strategy(strategy: Strategy) -> None:
    """Quantizers need every parameter whole, in every process.

    Raises:
        ValueError: the strategy splits parameters.
    """
    if isinstance(strategy, FSDPStrategy | ModelParallelStrategy | DeepSpeedStrategy | XLAStrategy):
        raise ValueError(
            f"strategy {type(strategy).__name__} does not keep every weight and scale whole in each process, which quantizers "
            "need: write L.Trainer(strategy='ddp')."
        )


def check_model_comes_back(strategy: Strategy) -> None:
    """Asked where quantizers are about to be inserted by a fit: the process that holds the model must be one that trains it.

    Raises:
        ValueError: the fit runs in processes that end with it, and the caller's model would come back without quantizers.
    """
    if isinstance(strategy.launcher, _MultiProcessingLauncher):
        raise ValueError(
            "this strategy trains in processes that end with the fit, and your model would come back without its quantizers: "
            "write L.Trainer(strategy='ddp'), or in a notebook prepare the network first, "
            "module.net = qat.prepare(module.net, policy), with strategy='ddp_notebook'."
        )


def check_launched(trainer: L.Trainer) -> None:
    """The launcher (torchrun, SLURM) has started as many processes as the Trainer wants.

    Raises:
        ValueError: it has started others; they would all do the same and overwrite each other's files.
    """
    started, wanted = os.environ.get("TORCHELASTIC_RUN_ID") and os.environ.get("WORLD_SIZE"), process_count(trainer)
    if started and int(started) != wanted:
        raise ValueError(
            f"torchrun has started {started} processes, the trainer uses {wanted}: write trainer.strategy=ddp "
            f"trainer.devices={os.environ.get('LOCAL_WORLD_SIZE', started)}."
        )


def process_count(trainer: L.Trainer) -> int:
    """How many processes will train, known before they are started."""
    return trainer.num_devices * trainer.num_nodes


def copy_from_rank_zero(trainer: L.Trainer, network: nn.Module) -> None:
    """Give `network`, in place, the weights that it has in process 0. DDP does so for its own module alone."""
    if trainer.world_size > 1:
        network.load_state_dict(trainer.strategy.broadcast(network.state_dict()))


def once(trainer: L.Trainer, work: Callable[[], T]) -> T:
    """What `work` returns in process 0, in all of them: the others wait for it, longer than the timeout of collectives.

    `work` finds itself alone: metrics, loops and barriers in it behave as if there were one process. Its value must be
    picklable. All processes must call this.

    Raises:
        RuntimeError: in the other processes, where `work` raised in process 0.
    """
    if trainer.world_size == 1:
        return work()
    group: Any = dist.new_group(backend="gloo", timeout=AS_LONG_AS_IT_TAKES)
    told: list[Any] = [None, "it ended"]
    try:
        if trainer.is_global_zero:
            with _alone():
                told = [work(), ""]
    except BaseException as error:
        told = [None, f"{type(error).__name__}: {error}"]
        raise
    finally:
        dist.broadcast_object_list(told, src=0, group=group)
        dist.destroy_process_group(group)
    value, failure = told
    if failure:
        raise RuntimeError(f"process 0 failed, so this one stops, too ({failure})")
    found: T = value
    return found


@contextmanager
def _alone() -> Iterator[None]:
    """Inside the `with`, nobody sees the process group: a Trainer or a metric that asks would wait for the others."""
    asking = dist.is_initialized
    dist.is_initialized = lambda: False
    try:
        yield
    finally:
        dist.is_initialized = asking
