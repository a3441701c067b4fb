"""Random numbers that do not depend on what ran before."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.utilities.combined_loader import CombinedLoader
from torch import Generator

from qat.training.lightning.hooks import wrap_hook
from qat.training.lightning.private_api import data_source
from qat.training.lightning.random_state import RandomState


@contextmanager
def seeded(seed: int, loaders: Iterable[Any] = ()) -> Iterator[None]:
    """Inside the `with`, the global random numbers are those of `seed`; afterwards, those that would have come.

    The generators of `loaders` go on as they are, and are where they were afterwards. (Lightning's `isolate_rng` restores
    nothing if the block raises, or if the generator around it is closed.)
    """
    generators = generators_of(loaders)
    before = RandomState.current(generators)
    try:
        torch.manual_seed(seed)
        np.random.seed(seed)  # noqa: NPY002 (datasets augment with the global state)
        random.seed(seed)
        yield
    finally:
        before.restore(generators)


def generators_of(loaders: Iterable[Any]) -> list[Generator]:
    """The generators of dataloaders and of their samplers, each once."""
    found: dict[int, Generator] = {}
    for loader in loaders:
        batch_sampler = getattr(loader, "batch_sampler", None)
        owners = (loader, getattr(loader, "sampler", None), batch_sampler, getattr(batch_sampler, "sampler", None))
        for generator in (getattr(owner, "generator", None) for owner in owners):
            if isinstance(generator, Generator):
                found[id(generator)] = generator
    return list(found.values())


class GeneratorsKept(L.Callback):
    """Notes the generators of the dataloaders that a run asks for; `restore` gives them back their states."""

    def __init__(self) -> None:
        self._states: list[tuple[Generator, torch.Tensor]] = []

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        wrap_hook(data_source(trainer), "dataloader", self._noting)

    def _noting(self, hook: Callable[[], Any]) -> Callable[[], Any]:
        def dataloader() -> Any:
            loaders = hook()
            flat = (loaders if isinstance(loaders, CombinedLoader) else CombinedLoader(loaders, "sequential")).flattened
            self._states = [(generator, generator.get_state()) for generator in generators_of(flat)]
            return loaders

        return dataloader

    def restore(self) -> None:
        """Give the generators the states in which the run found them."""
        for generator, state in self._states:
            generator.set_state(state)
