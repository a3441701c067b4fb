"""The train dataloaders of a fit, which can go back to the batch at which another process stopped."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from lightning.fabric.utilities.data import sized_len
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
from qat.training.lightning.private_api import combination_mode, index_batches, load_loader_states
from qat.training.lightning.random_numbers import generators_of
from qat.training.lightning.random_state import RandomState

SAMPLERS_INDEPENDENT_OF_LOADING = (
    *(SequentialSampler, RandomSampler, SubsetRandomSampler, WeightedRandomSampler),
    *(DistributedSampler, EpochSampler),
)
"""Samplers that read the global random state at most before their first index, whatever is loaded in between."""


@dataclass(frozen=True)
class InterruptedEpoch:
    """A pass over the train dataloaders as far as it had come when the checkpoint was written.

    Args:
        at_start: the random state right before the pass began; None: it had not begun.
        at_first_batch: the random state right before its first batch; in a first epoch, hooks run between the two.
        batches: the number of its batches that were trained.
        afterwards: the random state in which the next batch is drawn; None: that of the process.
        loader_states: states of the dataloaders that keep one themselves (torchdata's StatefulDataLoader).
    """

    at_start: RandomState | None = None
    at_first_batch: RandomState | None = None
    batches: int = 0
    afterwards: RandomState | None = None
    loader_states: list[dict[str, Any]] = field(default_factory=list)

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> InterruptedEpoch:
        """From what `Resume.record` keeps for one process, with the states of dataloaders as "loaders"."""
        if record["began"] is None:
            return cls()
        first = record["first_draw"]
        drawn_in = record.get("drawn_ahead") or (record["random"] if record["where"]["in_step"] else None)
        return cls(
            at_start=RandomState.from_plain(record["began"]),
            at_first_batch=None if first is None else RandomState.from_plain(first),
            batches=record["batches"],
            afterwards=None if drawn_in is None else RandomState.from_plain(drawn_in),
            loader_states=record["loaders"],
        )


class ReplayedLoader(CombinedLoader):
    """Lightning's CombinedLoader, which records how its pass began and can go back into an interrupted one.

    To go back, it restores the random state of the start, begins the same pass, draws the trained batches again and throws
    them away, and restores the random state of the interruption. Worker processes are seeded when a pass begins, so they
    draw what they drew before. Batches that this process loads itself are not loaded again: only their indices are drawn.

    Args:
        loaders: the CombinedLoader that Lightning would have used.
        take_interrupted: called before every batch; returns the epoch to go back into, or None.
        records_draws: whether to record `before_draw` for every batch, for checkpoints that are written when a step raises;
            that of data of unknown length, of which Lightning draws a batch ahead, always is.
    """

    def __init__(
        self,
        loaders: CombinedLoader,
        take_interrupted: Callable[[], InterruptedEpoch | None],
        records_draws: bool = False,
    ) -> None:
        super().__init__(loaders.iterables, combination_mode(loaders))
        self.take_interrupted = take_interrupted
        self._records_draws = records_draws
        self.at_start: RandomState | None = None
        """The random state right before this pass."""
        self.at_first_batch: RandomState | None = None
        """The random state right before its first batch."""
        self.before_draw: RandomState | None = None
        """The random state right before its latest batch, or before its first one unless `records_draws`."""
        self.requested = 0
        """The number of batches that were requested in this pass."""

    def __iter__(self) -> ReplayedLoader:
        self.at_start = RandomState.current(self.generators)
        self.at_first_batch = self.before_draw = None
        self.requested = 0
        super().__iter__()
        return self

    def __next__(self) -> Any:
        if (interrupted := self.take_interrupted()) is not None:
            self._go_back(interrupted)
        if self.at_first_batch is None or self._records_draws or sized_len(self) is None:
            self.before_draw = RandomState.current(self.generators)
            self.at_first_batch = self.at_first_batch or self.before_draw
        self.requested += 1
        try:
            return super().__next__()
        except StopIteration:  # of data of unknown length, which only say so when there is no batch left
            self.requested -= 1
            raise

    @property
    def generators(self) -> list[Generator]:
        """The generators of the loaders and of their samplers, each once."""
        return generators_of(self.flattened)

    def end_pass(self, interrupted: InterruptedEpoch) -> None:
        """Make loaders that keep their place read the restored one, although no batch of that pass is left.

        A loader whose `iter` is a generator reads it with its first batch, and would take it for the place of the next pass: so
        one more batch is asked for, of which there should be none.
        """
        if not interrupted.loader_states:
            return
        now = RandomState.current(self.generators)
        try:
            super().__next__()
        except StopIteration:
            pass
        else:  # a place at which a pass begins, or one that was cut short
            load_loader_states(self, interrupted.loader_states)
            super().__iter__()
        now.restore(self.generators)

    def _go_back(self, interrupted: InterruptedEpoch) -> None:
        # Before the checkpoint was restored, Lightning began a pass in another random state: its workers end here.
        self.reset()
        now = RandomState.current(self.generators)
        if interrupted.loader_states:
            load_loader_states(self, interrupted.loader_states)
        if interrupted.at_start is None:
            iter(self)
            return
        interrupted.at_start.restore(self.generators)
        iter(self)
        self.at_first_batch = interrupted.at_first_batch
        if self.at_first_batch is not None:
            self.at_first_batch.restore(self.generators)
        if not interrupted.loader_states:
            self._skip(interrupted.batches)
        self.requested = interrupted.batches
        (interrupted.afterwards or now).restore(self.generators)

    def _skip(self, batches: int) -> None:
        if len(self.flattened) == 1 and _can_skip_loading(self.flattened[0]):
            indices = index_batches(self)
            for _ in range(batches):
                next(indices)
            return
        for _ in range(batches):
            super().__next__()


def _can_skip_loading(loader: Any) -> bool:
    """Whether drawing the indices of batches leaves the samplers as loading the batches would."""
    return (
        type(loader) is DataLoader
        and loader.num_workers == 0
        and type(loader.batch_sampler) is BatchSampler
        and type(loader.sampler) in SAMPLERS_INDEPENDENT_OF_LOADING
    )
