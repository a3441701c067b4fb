"""Faults of quantization-aware training that would otherwise go unnoticed."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import nn

from qat.capture import serves_call
from qat.quantizers import Quantizer
from qat.torch_private import BatchNorm
from qat.transform import quantizers


class ForwardMonitor:
    """Notes whether the prepared forward runs, with hooks on its activation quantizers.

    A LightningModule that is prepared itself, but calls `self.backbone(x)` in training_step, would train without them.

    Args:
        network: the prepared network.

    Attributes:
        ran: whether it did.
        other_call: the arguments of a call of the network that its graph does not serve; "".
    """

    def __init__(self, network: nn.Module) -> None:
        by_name = quantizers(network)
        activation = [q for q in by_name.values() if not q.is_weight]
        self.ran, self.other_call = False, ""
        self._handles = [q.register_forward_pre_hook(self._note) for q in activation or by_name.values()]
        self._handles.append(network.register_forward_pre_hook(self._note_call, with_kwargs=True))

    def _note(self, *_: object) -> None:
        self.ran = True

    def _note_call(self, network: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if not serves_call(network, args, kwargs):
            self.other_call = ", ".join([*(type(x).__name__ for x in args), *kwargs])

    def restart(self) -> None:
        """Forget what was noted."""
        self.ran, self.other_call = False, ""

    def check(self, module: nn.Module, network_name: str) -> None:
        """Check that the prepared network ran.

        Args:
            module: the LightningModule.
            network_name: name of the prepared network in it, "" for the module itself.

        Raises:
            ValueError: it did not run.
        """
        if self.ran:
            return
        kind = type(module).__name__
        if self.other_call:
            raise ValueError(
                f"the first training step of {kind} called the network with ({self.other_call}), and its graph was captured "
                "with other arguments, those of a batch: say what it is called with, QuantizationAwareTraining(policy, "
                "inputs=lambda batch: {'x': batch['x']})."
            )
        where = f"its submodule {network_name!r}" if network_name else "its own forward"
        raise ValueError(
            f"the first training step of {kind} did not run the network that was prepared, {where}: call it in training_step "
            "as self(batch), or name the network that is trained, QuantizationAwareTraining(policy, network=...)."
        )

    def stop(self) -> None:
        """Remove the hooks."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()


def is_in_evaluation_mode(network: nn.Module) -> bool:
    """Whether a network with BatchNorm is in evaluation mode as a whole.

    Single layers in evaluation mode inside a network in training mode do not count: the user chose them.
    """
    return not network.training and any(isinstance(module, BatchNorm) for module in network.modules())


def warn_of_learned_scales(network: nn.Module, epoch: int, warned: set[str]) -> None:
    """Warn of learned scales with a fault, each once: `warned` holds the names of those that were."""
    for name, quantizer in quantizers(network).items():
        if name not in warned and (what := learned_scale_fault(quantizer)):
            warned.add(name)
            rank_zero_warn(f"epoch {epoch}: the learned scale of {quantizer.label!r} {what}")


def learned_scale_fault(quantizer: Quantizer) -> str:
    """The fault of a learned scale that is finite, as the end of a sentence; "" if there is none."""
    scale, floor = getattr(quantizer, "scale", None), getattr(quantizer, "floor", None)
    if not isinstance(scale, nn.Parameter) or not isinstance(floor, torch.Tensor):
        return ""
    fallen = int((scale <= floor).sum())
    works_there = quantizer.is_weight and quantizer.spec.grid.bits > 4  # half its first value: a few may lie on it
    if fallen > (scale.numel() // 2 if works_there else 0):
        return (
            f"has fallen to its floor ({fallen} of {scale.numel()}): lower the learning rate or quantizer_lr_ratio, or give it "
            "more bits."
        )
    return ""
