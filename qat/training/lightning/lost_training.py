"""Ends a fit whose data are not finite, or whose training has diverged, with one sentence."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import lightning as L
import torch
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor, nn

from qat.training.lightning.inputs import BatchToInputs
from qat.transform.batches import call_of, is_usable, not_finite_sentence
from qat.transform.distributed import gather, world_size

STEPS_BETWEEN_CHECKS = 50
"""Steps between two looks at the numbers of an accelerator or of several processes, which have to wait for each other; one
process on a CPU looks in every step."""
LOSS = "the loss"


class DivergedError(ValueError):
    """The training diverged: nothing that follows would mean anything."""


class LostTraining(L.Callback):
    """Looks for NaN and infinity in the batches and the loss of every step, and ends the fit at the first that it finds.

    Where the loss does not tell, it looks at the weights: before each validation, at the end of each epoch, and every 50 steps
    if steps return no loss.

    Args:
        inputs: from a batch to the arguments of the network. None: batches are not looked at.
        network_of: from the LightningModule to the network that is called with them.
        remedy: what to write instead of a training that diverged.
    """

    def __init__(
        self,
        inputs: BatchToInputs | None,
        network_of: Callable[[L.LightningModule], nn.Module],
        remedy: str = "lower the learning rate, or clip gradients, Trainer(gradient_clip_val=1.0)",
    ) -> None:
        self._inputs, self._network_of, self._remedy = inputs, network_of, remedy
        self._noted: list[tuple[str, dict[str, Tensor]]] = []
        self._lost_since = ""
        self._steps_without_loss = 0

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Note the batch, and look at it where that costs nothing, or enough has been noted."""
        flags = {name: is_usable(part) for name, part in self._parts(pl_module, batch)}
        loss = outputs.get("loss") if isinstance(outputs, Mapping) else outputs
        if isinstance(loss, Tensor):
            flags[LOSS] = torch.isfinite(loss.detach()).all()
        self._steps_without_loss = 0 if LOSS in flags else self._steps_without_loss + 1
        epoch = trainer.current_epoch + 1
        self._noted.append((f"training batch {batch_idx} of epoch {epoch} (step {trainer.global_step})", flags))
        waits = world_size() > 1 or any(flag.device.type != "cpu" for flag in flags.values())
        if not waits or len(self._noted) >= STEPS_BETWEEN_CHECKS:
            self._check(pl_module, weights=self._steps_without_loss >= STEPS_BETWEEN_CHECKS)

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking:
            self._check(pl_module, weights=True)

    on_train_epoch_end = on_validation_start

    def _parts(self, module: L.LightningModule, batch: Any) -> list[tuple[str, Tensor]]:
        if self._inputs is None:
            return []
        try:
            return call_of(self._network_of(module), self._inputs(batch)).float_parts
        except ValueError:  # calibration says so, if it needs these inputs
            return []

    def _check(self, module: L.LightningModule, weights: bool = False) -> None:
        """Look at what was noted. With several processes all must call it, and all raise.

        Args:
            module: the LightningModule.
            weights: whether to look at the weights even if the loss is finite.

        Raises:
            ValueError: the inputs of a batch hold NaN or infinity.
            DivergedError: neither the loss nor the weights are finite any more.
        """
        found = next((sentence for sentence in gather(self._fault(module, weights)) if sentence), "")
        if found:
            raise (DivergedError if found.startswith("The training diverged") else ValueError)(found)

    def _fault(self, module: nn.Module, weights: bool) -> str:
        noted, self._noted = self._noted, []
        for where, flags in noted:
            for name, flag in flags.items():
                if name != LOSS and not bool(flag):
                    return not_finite_sentence(where, name)
            if LOSS in flags:
                self._lost_since = "" if bool(flags[LOSS]) else self._lost_since or where
        if not self._lost_since and not weights:
            return ""
        self._steps_without_loss = 0
        since = f"the loss is not finite since {self._lost_since}, and " if self._lost_since else ""
        for name, parameter in module.named_parameters():
            if parameter.requires_grad and not bool(torch.isfinite(parameter).all()):
                return f"The training diverged: {since}{name} holds NaN or infinity: {self._remedy}."
        return ""  # of mixed precision, which skips such steps
