"""How far a fit is: schedules are functions of nothing else, so a resumed fit continues them exactly."""

from __future__ import annotations

import math
from typing import Any

import lightning as L


def fraction_of_fit(trainer: L.Trainer, batch_idx: int) -> float:
    """The fraction of a fit that is over when batch `batch_idx` of its current epoch begins, in [0, 1).

    Counted in steps or epochs, whichever limit of the Trainer comes first; in whole epochs if the length of an epoch is
    unknown.
    """
    fractions = [0.0]
    if trainer.max_steps > 0:
        fractions.append(trainer.global_step / trainer.max_steps)
    if trainer.max_epochs is not None and trainer.max_epochs > 0:
        batches = trainer.num_training_batches
        known = math.isfinite(batches)
        done = trainer.current_epoch * batches + batch_idx if known else trainer.current_epoch
        fractions.append(done / (trainer.max_epochs * (batches if known else 1)))
    return max(fractions)


def last_fraction_of_fit(trainer: L.Trainer) -> float:
    """The fraction of a fit that is over when its last batch begins, unless it ends early."""
    lengths = [float(trainer.max_steps)] if trainer.max_steps > 0 else []
    if trainer.max_epochs is not None and trainer.max_epochs > 0:
        batches = trainer.num_training_batches
        lengths.append(trainer.max_epochs * (batches if math.isfinite(batches) else 1))
    return min((length - 1) / length for length in lengths)


def check_known_length(trainer: L.Trainer, callback: L.Callback) -> None:
    """Check that the end of the fit is known when it begins, which `callback` needs.

    Raises:
        ValueError: it is not.
    """
    if trainer.max_steps < 1 and (trainer.max_epochs is None or trainer.max_epochs < 1):
        raise ValueError(
            f"{type(callback).__name__} needs the length of the fit: write L.Trainer(max_epochs=...) or max_steps=...."
        )


def is_fraction(value: Any) -> bool:
    """Whether `value` is a number from 0 to 1."""
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= 1
