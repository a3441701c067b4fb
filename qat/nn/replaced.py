"""Modules in the places of others."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn


def with_replaced(model: nn.Module, new: Mapping[nn.Module, nn.Module]) -> nn.Module:
    """`model` with other modules in the places of those that are keys of `new`, under all their names; in place.

    Returns:
        `model`, or what replaces it.
    """
    for name, module in list(model.named_modules(remove_duplicate=False)):
        if name and module in new:
            owner, _, attribute = name.rpartition(".")
            setattr(model.get_submodule(owner), attribute, new[module])
    return new.get(model, model)
