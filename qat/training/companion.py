"""How a callback finds the one that it works with."""

from __future__ import annotations

from typing import Any, TypeVar

import lightning as L

C = TypeVar("C", bound=L.Callback)


def beside(trainer: Any, kind: type[C]) -> C | None:
    """The callback of class `kind` in the same Trainer, if there is one."""
    return next((callback for callback in trainer.callbacks if isinstance(callback, kind)), None)


def companion(trainer: Any, kind: type[C], asking: L.Callback) -> C:
    """The callback of class `kind` in the same Trainer.

    Raises:
        ValueError: there is none.
    """
    found = beside(trainer, kind)
    if found is None:
        raise ValueError(
            f"{type(asking).__name__} needs {kind.__name__} beside it: L.Trainer(callbacks=[{kind.__name__}(...), "
            f"{type(asking).__name__}(...)])."
        )
    return found
