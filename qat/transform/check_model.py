"""Checks that quantizers can be put into a model, before anything is changed."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from qat.arguments import check_network
from qat.messages import type_of


def check_model(model: nn.Module) -> None:
    """Refuse models that cannot be prepared.

    Raises:
        ValueError: it is not a module, is compiled or scripted, or has weights without a size.
    """
    check_network(model)
    if (compiled := dict(model.named_children()).get("_orig_mod")) is not None:
        raise ValueError(
            f"the model is compiled (torch.compile of a {type(compiled).__name__}): give qat the network itself, "
            "model._orig_mod, and compile what becomes of it."
        )
    for name, module in model.named_modules():
        if isinstance(module, torch.jit.ScriptModule) and (not name or any(True for _ in module.parameters())):
            raise ValueError(
                f"{name or 'the model'} is {type_of(module)} of torch.jit, whose layers cannot be changed: give qat the "
                "network as it was before it was scripted or traced."
            )
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if is_lazy(tensor):
            owner = model.get_submodule(name.rpartition(".")[0])
            raise ValueError(
                f"{name} of a {type(owner).__name__} has no size yet: run the model once on a batch, model(x), before it "
                "is prepared."
            )
