"""The order in which the callbacks of a Trainer run."""

from __future__ import annotations

from typing import Any

import lightning as L

from qat.training.lightning.callback_lookup import NetworkExtension


def move_to_front(trainer: Any, callback: L.Callback) -> list[L.Callback]:
    """Reorder the callbacks of the Trainer: `callback` first, then each `NetworkExtension`, then the others.

    Returns:
        The callbacks that came before `callback`.
    """
    place = trainer.callbacks.index(callback)
    earlier, later = trainer.callbacks[:place], trainer.callbacks[place + 1 :]
    others = sorted([*earlier, *later], key=lambda other: not isinstance(other, NetworkExtension))
    trainer.callbacks = [callback, *others]
    return list(earlier)
