"""Every image classifier of torchvision, by name."""

from __future__ import annotations

import difflib
import textwrap
from pathlib import Path

import torch
import torchvision.models
from torch import nn

from qat.arguments import check_count
from qat.messages import shown

# these models would return a tuple in training
WITHOUT_AUXILIARY_HEADS = {"aux_logits": False, "init_weights": False}
HAVE_AUXILIARY_HEADS = ("googlenet", "inception_v3")


def torchvision_model(
    name: str, num_classes: int = 1000, in_channels: int = 3, weights: str | None = None
) -> nn.Module:
    """A torchvision classifier with a head of `num_classes` logits.

    Args:
        name: as in `torchvision.models.list_models(torchvision.models)`: "resnet18", "mobilenet_v2", ...
        num_classes: number of logits. Pretrained weights keep their head only if it has as many; a new head is random.
        in_channels: 3, the only number that torchvision's classifiers accept.
        weights: "DEFAULT", or a name from the model's weights enum such as "IMAGENET1K_V1"; None is random weights.

    Raises:
        ValueError: torchvision has no such `name` or `weights`, `num_classes` is not positive, or `in_channels` is not 3.
        FileNotFoundError: the weights are not on this computer and cannot be downloaded.
    """
    names = torchvision.models.list_models(torchvision.models)
    if name not in names:
        close = difflib.get_close_matches(str(name), names, n=3, cutoff=0.5) or ["resnet18", "mobilenet_v2"]
        raise ValueError(
            f"model.name={shown(name)} is not a classifier of torchvision: write for example {', '.join(close)}."
        )
    check_count("num_classes", num_classes)
    check_count("in_channels", in_channels)
    if in_channels != 3:
        raise ValueError(
            f"in_channels={in_channels}, but {name} takes RGB images: set data.channels=3, or use model=lenet5 or resnet20."
        )
    options = WITHOUT_AUXILIARY_HEADS if name in HAVE_AUXILIARY_HEADS else {}
    model = torchvision.models.get_model(name, weights=None, num_classes=num_classes, **options)
    if weights is not None:
        _copy_all_but_the_head(_pretrained(name, weights), model)
    return model


def _pretrained(name: str, weights: str) -> nn.Module:
    weights_enum = torchvision.models.get_model_weights(name)
    if weights not in (*weights_enum.__members__, "DEFAULT"):
        members = ", ".join(weights_enum.__members__)
        raise ValueError(f"model.weights={weights!r} is not one of {name}'s: write {members}, DEFAULT or null.")
    try:
        return torchvision.models.get_model(name, weights=weights)
    except (OSError, RuntimeError) as error:  # no network, no space, a damaged file
        file = Path(torch.hub.get_dir(), "checkpoints", Path(weights_enum[weights].url).name)
        raise FileNotFoundError(
            f"the weights {weights} of {name} cannot be downloaded ({textwrap.shorten(str(error), 120)}): "
            f"put them at {file}, or set model.weights=null."
        ) from error


def _copy_all_but_the_head(source: nn.Module, target: nn.Module) -> None:
    """Copy all tensors of equal shape: only the shape of the head depends on the number of classes."""
    target_state = target.state_dict()
    fitting = {k: v for k, v in source.state_dict().items() if k in target_state and v.shape == target_state[k].shape}
    target.load_state_dict(fitting, strict=False)
