"""Suspend the choice of the best checkpoint, while metrics are those of another network than the one that the fit ends with."""

from __future__ import annotations

from typing import Any
from weakref import WeakKeyDictionary

import torch
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint

NEWEST_MONITORS = (None, "step", "epoch")
"""Values of `monitor` with which a ModelCheckpoint keeps the newest checkpoint, not the best one."""

_suspended: WeakKeyDictionary[ModelCheckpoint, tuple[int, set[int]]] = WeakKeyDictionary()
"""Checkpoint -> its own `save_top_k`, and who has suspended it: several callbacks may."""


def suspend_selection(trainer: Any, holder: object) -> None:
    """Let no `ModelCheckpoint` that monitors a metric keep anything, until `holder` resumes it. `save_last` continues."""
    for checkpoint in trainer.checkpoint_callbacks:
        if isinstance(checkpoint, ModelCheckpoint) and checkpoint.monitor not in NEWEST_MONITORS:
            _suspended.setdefault(checkpoint, (checkpoint.save_top_k, set()))[1].add(id(holder))
            checkpoint.save_top_k = 0


def resume_selection(trainer: Any, holder: object) -> None:
    """Undo `suspend_selection`, once no other holder suspends it. Without effect if `holder` does not suspend it."""
    for checkpoint in trainer.checkpoint_callbacks:
        top_k, holders = _suspended.get(checkpoint, (0, set()))
        if id(holder) in holders:
            holders.discard(id(holder))
            if not holders:
                checkpoint.save_top_k = top_k
                del _suspended[checkpoint]


def forget_best(trainer: Any) -> None:
    """Forget the best checkpoint so far: it was chosen among other networks."""
    for checkpoint in trainer.checkpoint_callbacks:
        if isinstance(checkpoint, ModelCheckpoint):
            checkpoint.best_model_path = ""


def restart_early_stopping(trainer: Any) -> None:
    """Forget the best value so far: the network is worse from now on, so it is not a measure."""
    for stopping in trainer.early_stopping_callbacks:
        if isinstance(stopping, EarlyStopping):
            stopping.wait_count = 0
            stopping.best_score = torch.tensor(torch.inf if stopping.monitor_op is torch.lt else -torch.inf)
