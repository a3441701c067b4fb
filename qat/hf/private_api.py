"""The private member of transformers that is used; tests/test_private_api.py says so when a new version lacks it."""

from __future__ import annotations

from torch import nn


def keep_names_in_checkpoints(model: nn.Module) -> None:
    """Let `save_pretrained` write the names of the network itself, in place.

    Trainer restores no others, and transformers would write some of older versions (`encoder.layer` for `layers` in a ViT).
    """
    model._weight_conversions = []  # type: ignore[assignment]
