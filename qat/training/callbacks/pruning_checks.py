"""Checks of masks and their zeros, when a fit begins and while it runs."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import Tensor

from qat.quantizers.codebook import Codebook
from qat.training.callbacks.prunable_weights import PrunableWeight
from qat.transform.distributed import gather


@torch.no_grad()
def keep_zero(name: str, layer: PrunableWeight) -> None:
    """Let the quantizer of a weight have zero among its levels, if it can.

    Raises:
        ValueError: it rounds zero to something else.
    """
    quantizer = layer.quantizer
    if quantizer is None or not quantizer.ready:
        return
    if isinstance(quantizer, Codebook):
        quantizer.keep_zero()
    if bool(quantizer.dequantize(quantizer.quantize(torch.zeros_like(layer.value))).any()):
        raise ValueError(
            f"{type(quantizer).__name__}, of the weight of layer {name!r}, has no zero, so nothing can be pruned there: "
            "write another quantizer, such as lsq, or exclude the layer."
        )


def check_masks_of_layers(masks: Mapping[str, Tensor], layers: Mapping[str, PrunableWeight]) -> None:
    """Check that every mask of a checkpoint is that of a layer that is pruned.

    Raises:
        ValueError: one is not.
    """
    if others := [name for name in masks if name not in layers]:
        raise ValueError(
            f"the checkpoint has masks of {', '.join(others)}, which Pruning does not prune here: write the match, exclude and "
            "pattern of the fit that is resumed."
        )


def warn_of_zero_layers(masks: Mapping[str, Tensor]) -> None:
    """Warn of layers in which no weight is left."""
    if empty := [name for name, mask in masks.items() if not bool(mask.any())]:
        rank_zero_warn(
            f"Pruning sets every weight of {', '.join(empty)} to zero: write a smaller sparsity, or exclude them."
        )


def check_same_masks(masks: Mapping[str, Tensor]) -> None:
    """Check that all processes have the same masks. All must call it.

    Raises:
        RuntimeError: they differ.
    """
    digest = hashlib.sha256()
    for mask in masks.values():
        digest.update(mask.cpu().contiguous().numpy().tobytes())
    if len(set(gather(digest.hexdigest()))) > 1:
        raise RuntimeError(
            "the masks of Pruning differ between processes: change weights only in ways that every process computes alike."
        )
