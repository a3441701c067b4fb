"""What goes wrong silently in quantization-aware training, said aloud."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from qat.quantizers import Quantizer
from qat.transform import quantizers


class Watch:
    """Whether a stretch of code runs the forward that was prepared: its activation quantizers tell.

    A LightningModule that is prepared itself, but calls `self.backbone(x)` in training_step, would train without them.
    """

    def __init__(self, network: nn.Module) -> None:
        found = quantizers(network)
        watched = [q for name, q in found.items() if not name.endswith("weight_quantizer")] or list(found.values())
        self.ran = False
        self._handles = [quantizer.register_forward_pre_hook(self._note) for quantizer in watched]

    def _note(self, *_: object) -> None:
        self.ran = True

    def stop(self) -> None:
        """Take the hooks away."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()


def is_in_evaluation_mode(network: nn.Module) -> bool:
    """Whether somebody called eval() on a network with BatchNorm and no train() afterwards. Single layers that are at rest in
    a network in training mode are meant to be.
    """
    return not network.training and any(isinstance(module, _BatchNorm) for module in network.modules())


def trouble(quantizer: Quantizer) -> str:
    """What is wrong with a learned scale or range, as the end of a sentence; "" if nothing is."""
    if not all(bool(torch.isfinite(parameter).all()) for parameter in quantizer.parameters()):
        return "is not finite any more: this training is lost; lower the learning rate, or look for NaN in the loss."
    scale, floor = getattr(quantizer, "scale", None), getattr(quantizer, "floor", None)
    if isinstance(scale, nn.Parameter) and isinstance(floor, torch.Tensor) and bool((scale <= floor).any()):
        fallen = f"{int((scale <= floor).sum())} of {scale.numel()}"
        return (
            f"has fallen to its floor ({fallen}): lower the learning rate or quantizer_lr_ratio, or give it more bits."
        )
    return ""
