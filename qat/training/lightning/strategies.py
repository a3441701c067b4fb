"""Checks of the Trainer's strategy and of its processes."""

from __future__ import annotations

import os

import lightning as L
from lightning.pytorch.accelerators import CPUAccelerator
from lightning.pytorch.plugins.environments import LightningEnvironment
from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy, Strategy, XLAStrategy

from qat.training.lightning.private_api import MultiProcessingLauncher


def check_strategy(strategy: Strategy) -> None:
    """Check that every process has each parameter whole, which quantizers need.

    Raises:
        ValueError: the strategy splits parameters.
    """
    if isinstance(strategy, FSDPStrategy | ModelParallelStrategy | DeepSpeedStrategy | XLAStrategy):
        raise ValueError(
            f"strategy {type(strategy).__name__} does not keep every weight and scale whole in each process, which quantizers "
            "need: write L.Trainer(strategy='ddp')."
        )


def check_trains_in_this_process(strategy: Strategy) -> None:
    """Check that a fit that inserts quantizers trains in the process that holds the caller's model.

    Raises:
        ValueError: the fit runs in processes that end with it, and the caller's model would come back without quantizers.
    """
    if isinstance(strategy.launcher, MultiProcessingLauncher):
        raise ValueError(
            "this strategy trains in processes that end with the fit, and your model would come back without its quantizers: "
            "write L.Trainer(strategy='ddp'), or in a notebook prepare the network first, "
            "module.net = qat.prepare(module.net, policy), with strategy='ddp_notebook'."
        )


def check_launched_processes(trainer: L.Trainer) -> None:
    """Check that torchrun has started as many processes as the Trainer uses.

    Raises:
        ValueError: it has started another number; each process would do the same and overwrite the files of the others.
    """
    started, wanted = os.environ.get("TORCHELASTIC_RUN_ID") and os.environ.get("WORLD_SIZE"), process_count(trainer)
    if started and int(started) != wanted:
        raise ValueError(
            f"torchrun has started {started} processes, the trainer uses {wanted}: write trainer.strategy=ddp "
            f"trainer.devices={os.environ.get('LOCAL_WORLD_SIZE', started)}."
        )


def check_machine(trainer: L.Trainer) -> None:
    """Check that this machine has a core for each process, and that processes of other machines can be reached.

    Raises:
        ValueError: there are more of them than cores, or this machine would wait for others that cannot know of it.
    """
    cores = max(2, os.cpu_count() or 1)
    if isinstance(trainer.accelerator, CPUAccelerator) and trainer.num_devices > cores:
        raise ValueError(
            f"trainer.devices={trainer.num_devices} is more than the {cores} cores of this machine: write {cores} or fewer."
        )
    environment = getattr(trainer.strategy, "cluster_environment", None)
    if trainer.num_nodes > 1 and isinstance(environment, LightningEnvironment) and "MASTER_ADDR" not in os.environ:
        raise ValueError(
            f"trainer.num_nodes={trainer.num_nodes} needs to know the other machines: start the run with torchrun or SLURM, or "
            "write trainer.num_nodes=1."
        )


def process_count(trainer: L.Trainer) -> int:
    """The number of processes that will train, known before they are started."""
    return trainer.num_devices * trainer.num_nodes
