"""The check, before a run, that a model fits the data."""

from __future__ import annotations

import textwrap

import torch
from torch import Tensor, nn

from qat.contexts import training_mode
from qat.messages import type_of


def check_model(model: nn.Module, image_shape: tuple[int, int, int], num_classes: int) -> None:
    """Check the logits of two black images, in eval mode and without gradients.

    As in training, the images are channels last in memory: a model that calls `view` on them must call `flatten` or
    `reshape` instead.

    Args:
        image_shape: (C, H, W).

    Raises:
        ValueError: the model does not take such images, or does not return logits (N, num_classes).
    """
    name = type(model).__name__
    first = next((tensor for tensor in (*model.parameters(), *model.buffers()) if tensor.is_floating_point()), None)
    device = None if first is None else first.device
    dtype = None if first is None else first.dtype
    images = torch.zeros(2, *image_shape, device=device, dtype=dtype).contiguous(memory_format=torch.channels_last)
    try:
        with training_mode(model, False), torch.no_grad():
            logits = model(images)
    except (RuntimeError, ValueError, IndexError, AssertionError) as error:
        raise ValueError(
            f"{name} cannot take images of shape {image_shape} ({textwrap.shorten(str(error), 160)}): "
            "choose a model made for such images, or other data."
        ) from error
    if not isinstance(logits, Tensor):
        raise ValueError(f"{name} returns {type_of(logits)}: wrap it so that it returns one tensor of logits.")
    if logits.shape != (2, num_classes):
        raise ValueError(
            f"{name} returns {tuple(logits.shape)} for 2 images, the data have {num_classes} classes: "
            f"build it with num_classes={num_classes}, so that it returns (2, {num_classes})."
        )
