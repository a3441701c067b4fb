"""How a callback finds the one that it works with, and how QuantizationAwareTraining finds those that add to its network."""

from __future__ import annotations

from typing import Any, TypeVar

import lightning as L
from torch import nn

C = TypeVar("C", bound=L.Callback)


def find_callback(trainer: Any, kind: type[C]) -> C | None:
    """The callback of class `kind` in the same Trainer, if there is one."""
    return next((callback for callback in trainer.callbacks if isinstance(callback, kind)), None)


def require_callback(trainer: Any, kind: type[C], asking: L.Callback) -> C:
    """The callback of class `kind` in the same Trainer.

    Raises:
        ValueError: there is none.
    """
    found = find_callback(trainer, kind)
    if found is None:
        raise ValueError(
            f"{type(asking).__name__} needs {kind.__name__} beside it: L.Trainer(callbacks=[{kind.__name__}(...), "
            f"{type(asking).__name__}(...)])."
        )
    return found


class NetworkExtension(L.Callback):
    """A callback that adds to the structure of the prepared network. Its turn comes right after QuantizationAwareTraining's."""

    def on_prepared(self, pl_module: nn.Module, network: nn.Module) -> None:
        """Called by QuantizationAwareTraining in setup, of every stage, before anybody copies, restores or optimizes.

        network: the prepared one, inside of `pl_module` or itself.
        """
