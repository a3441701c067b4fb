"""The train dataloaders of a fit, which can go back to the batch where another process stopped."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from lightning.pytorch.utilities.combined_loader import CombinedLoader
from torch import Generator
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    RandomSampler,
    SequentialSampler,
    SubsetRandomSampler,
    WeightedRandomSampler,
)
from torch.utils.data.distributed import DistributedSampler

from qat.training.checkpoint.epoch_sampler import EpochSampler
from qat.training.checkpoint.random_state import RandomState

DRAWN_AT_ONCE = (
    *(SequentialSampler, RandomSampler, SubsetRandomSampler, WeightedRandomSampler),
    *(DistributedSampler, EpochSampler),
)
"""Samplers that look at the global random state before their first index at most, whatever is loaded in between."""


@dataclass(frozen=True)
class Pass:
    """A pass over the train dataloaders as a checkpoint found it.

    Args:
        began: the random state right before it began; None: it had not begun.
        first_draw: the random state right before its first batch; in a first epoch, hooks lie between the two.
        batches: how many of it were trained.
        then: the random state to go on in; None: that which is found.
        loaders: states of the dataloaders that keep one themselves (torchdata's StatefulDataLoader).
    """

    began: RandomState | None = None
    first_draw: RandomState | None = None
    batches: int = 0
    then: RandomState | None = None
    loaders: list[dict[str, Any]] = field(default_factory=list)


class ReplayedLoader(CombinedLoader):
    """Lightning's CombinedLoader, which remembers how its pass began, and goes back into one that was interrupted.

    Going back means: the random state of then, the same pass from its start, and the batches that were trained drawn again
    and thrown away; afterwards the random state is that of the interruption. Worker processes are seeded when a pass begins,
    so they draw what they drew. What this process loads itself need not be loaded again: only indices are drawn.

    Args:
        loaders: the CombinedLoader that Lightning would have used.
        interrupted: asked in front of every batch; the Pass to go back to, or None.
        notes_draws: whether `before_draw` is kept, for checkpoints that an exception in a step writes.
    """

    def __init__(
        self, loaders: CombinedLoader, interrupted: Callable[[], Pass | None], notes_draws: bool = False
    ) -> None:
        super().__init__(loaders.iterables, loaders._mode)
        self.interrupted = interrupted
        self.notes_draws = notes_draws
        self.began: RandomState | None = None
        self.first_draw: RandomState | None = None
        self.before_draw: RandomState | None = None
        self.asked = 0
        """Batches that were asked of this pass."""

    def __iter__(self) -> ReplayedLoader:
        self.began = RandomState.now(self.generators)
        self.first_draw = self.before_draw = None
        self.asked = 0
        super().__iter__()
        return self

    def __next__(self) -> Any:
        if (interrupted := self.interrupted()) is not None:
            self._go_back(interrupted)
        if self.notes_draws or self.first_draw is None:
            self.before_draw = RandomState.now(self.generators)
            self.first_draw = self.first_draw or self.before_draw
        self.asked += 1
        return super().__next__()

    @property
    def generators(self) -> list[Generator]:
        """Those of the loaders and of their samplers, each once."""
        found: dict[int, Generator] = {}
        for loader in self.flattened:
            batch_sampler = getattr(loader, "batch_sampler", None)
            owners = (loader, getattr(loader, "sampler", None), batch_sampler, getattr(batch_sampler, "sampler", None))
            for generator in (getattr(owner, "generator", None) for owner in owners):
                if isinstance(generator, Generator):
                    found[id(generator)] = generator
        return list(found.values())

    def _go_back(self, interrupted: Pass) -> None:
        # Lightning has begun a pass before the checkpoint was restored, in another random state: its workers end here.
        self.reset()
        now = RandomState.now(self.generators)
        if interrupted.loaders:
            self._load_state_dicts(interrupted.loaders)
        if interrupted.began is None:
            iter(self)
            return
        interrupted.began.put_back(self.generators)
        iter(self)
        self.first_draw = interrupted.first_draw
        if self.first_draw is not None:
            self.first_draw.put_back(self.generators)
        if not interrupted.loaders:
            self._skip(interrupted.batches)
        self.asked = interrupted.batches
        (interrupted.then or now).put_back(self.generators)

    def _skip(self, batches: int) -> None:
        if len(self.flattened) == 1 and _draws_indices_alone(self.flattened[0]):
            assert self._iterator is not None
            indices = self._iterator.iterators[0]._sampler_iter  # type: ignore[attr-defined]
            for _ in range(batches):
                next(indices)
            return
        for _ in range(batches):
            super().__next__()


def _draws_indices_alone(loader: Any) -> bool:
    return (
        type(loader) is DataLoader
        and loader.num_workers == 0
        and type(loader.batch_sampler) is BatchSampler
        and type(loader.sampler) in DRAWN_AT_ONCE
    )
