"""How a callback finds the callbacks that it needs, and how `QuantizationAwareTraining` finds those that extend its network."""

from __future__ import annotations

from typing import Any, TypeVar

import lightning as L
from torch import nn

from qat.capture import copy_model

C = TypeVar("C", bound=L.Callback)


def find_callback(trainer: Any, kind: type[C]) -> C | None:
    """The callback of class `kind` in the Trainer; None if there is none."""
    return next((callback for callback in trainer.callbacks if isinstance(callback, kind)), None)


def require_callback(trainer: Any, kind: type[C], needed_by: L.Callback) -> C:
    """The callback of class `kind` in the Trainer, which `needed_by` needs.

    Raises:
        ValueError: there is none.
    """
    callback = find_callback(trainer, kind)
    if callback is None:
        raise ValueError(
            f"{type(needed_by).__name__} needs {kind.__name__} beside it: L.Trainer(callbacks=[{kind.__name__}(...), "
            f"{type(needed_by).__name__}(...)])."
        )
    return callback


def check_alone(trainer: Any, callback: L.Callback, instead: str) -> None:
    """Check that a callback is the only one of its class, where others look for one alone, or two would do things twice.

    instead: what to write, the end of a sentence.

    Raises:
        ValueError: there is another one.
    """
    number = sum(isinstance(other, type(callback)) for other in trainer.callbacks)
    if number > 1:
        raise ValueError(f"the Trainer has {number} callbacks {type(callback).__name__}: write one, {instead}.")


class FitReport(L.Callback):
    """A callback that reports a fit at its end, and then raises what else `ExportONNX` would: that its file differs."""

    reads_float_network = True


class NetworkExtension(L.Callback):
    """A callback that adds to the structure of the prepared network. It runs right after `QuantizationAwareTraining`."""

    changes_float_network = False
    """Whether `on_float_network` does something."""

    def on_float_network(self, pl_module: nn.Module, network: nn.Module) -> dict[str, int]:
        """Change the structure of the float network in place, before it is prepared: in setup, of every stage.

        Only the structure must be the same in every process and in a resumed fit; the weights may still be others.

        Returns:
            Layer -> output channels, of layers that have fewer now. `qat.load_checkpoint` takes out as many.
        """
        return {}

    def on_prepared(self, pl_module: nn.Module, network: nn.Module) -> None:
        """Extend the network in place: in setup, of every stage, before it is copied, restored or optimized.

        Args:
            pl_module: the user's LightningModule.
            network: the prepared network inside it, or `pl_module` itself.
        """


def change_float_network(
    trainer: Any, module: L.LightningModule, network: nn.Module
) -> tuple[nn.Module | None, dict[str, int]]:
    """Let every `NetworkExtension` of the Trainer change a float network that is about to be prepared.

    Returns:
        A copy of the network as it was, on the CPU (None: nothing changes it), and the changed numbers of channels.
    """
    changing = [c for c in trainer.callbacks if isinstance(c, NetworkExtension) and c.changes_float_network]
    original = copy_model(network).cpu() if changing else None
    channels: dict[str, int] = {}
    for callback in changing:
        channels |= callback.on_float_network(module, network)
    return original, channels


def extend_network(trainer: Any, module: L.LightningModule, network: nn.Module) -> None:
    """Let every `NetworkExtension` of the Trainer add to a network that has just been prepared."""
    for callback in trainer.callbacks:
        if isinstance(callback, NetworkExtension):
            callback.on_prepared(module, network)
