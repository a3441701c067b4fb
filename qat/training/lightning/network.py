"""The network inside a LightningModule: its name, and a copy of the module with another network in its place."""

from __future__ import annotations

import copy
from types import MethodType

import lightning as L
from torch import nn

from qat.capture import can_be_captured, copy_model
from qat.nn import is_layer, is_quantized
from qat.training.lightning.private_api import forget_logged_metrics, set_children
from qat.transform.record import is_prepared_root


def find_network_name(module: L.LightningModule, name: str | None = None) -> str:
    """The name of the submodule to quantize; "" if the forward of the LightningModule itself is the network.

    In this order: `name`, if given; the submodule that was prepared before; the only child with layers inside; the
    LightningModule itself, if its forward can be traced.

    Raises:
        ValueError: there is no such submodule, or several could be meant.
    """
    kind = type(module).__name__
    if name is not None:
        if name not in dict(module.named_modules()):
            choices = ", ".join(repr(n) for n, child in module.named_children() if _has_layers(child)) or "none"
            raise ValueError(
                f"network={name!r} is not a submodule of {kind}; its submodules with layers are: {choices}."
            )
        if not _has_forward(named := module.get_submodule(name)):
            raise ValueError(
                f"network={name!r} is a {type(named).__name__}, which has no forward: write the name of what it holds, as "
                f"{name + '.0'!r}, or network='' for {kind} itself."
            )
        return name
    if is_prepared_root(module):
        return ""
    children = [n for n, child in module.named_children() if _has_layers(child)]
    prepared = [n for n in children if is_prepared_root(module.get_submodule(n))]
    if len(prepared) == 1:
        return prepared[0]
    if not children:
        raise ValueError(f"{kind} has no Conv1d, Conv2d or Linear: build its layers in __init__, before the fit.")
    only = module.get_submodule(children[0])
    if len(children) == 1 and not _is_layer(only) and _has_forward(only):
        return children[0]
    has_layer_of_its_own = any(_is_layer(c) or not _has_forward(c) for c in map(module.get_submodule, children))
    if _overrides_forward(module) and (has_layer_of_its_own or can_be_captured(module)):
        return ""
    names = ", ".join(repr(n) for n in children)
    raise ValueError(
        f"{kind} has several submodules with layers ({names}) and no forward that can be traced: "
        f"say which one is the network, QuantizationAwareTraining(policy, network={children[0]!r})."
    )


def copy_with_network(module: L.LightningModule, name: str, network: nn.Module) -> L.LightningModule:
    """A copy of `module` that computes with `network` instead, in the user's own steps.

    It shares everything with `module` but the children (metrics, losses), which are copies.

    Args:
        module: the user's LightningModule.
        name: the submodule that `network` replaces; "": it replaces the forward of `module` itself.
        network: is not copied.
    """
    duplicate = copy.copy(module)  # Lightning leaves the trainer out
    set_children(duplicate, {n: c if n == name else copy_model(c) for n, c in module.named_children()})
    for attribute, value in vars(module).items():
        if isinstance(value, MethodType) and value.__self__ is module:  # such as the forward that DDP leaves behind
            vars(duplicate)[attribute] = MethodType(value.__func__, duplicate)
    if name:
        owner, _, attribute = name.rpartition(".")
        setattr(duplicate.get_submodule(owner), attribute, network)
    else:
        duplicate.add_module("network_under_test", network)
        vars(duplicate)["forward"] = network.__call__
    forget_logged_metrics(duplicate)
    # a callback that comes with the module would prepare the network again
    vars(duplicate)["configure_callbacks"] = list
    return duplicate


def _overrides_forward(module: L.LightningModule) -> bool:
    return type(module).forward is not L.LightningModule.forward


def _has_forward(module: nn.Module) -> bool:
    """Whether the module can be called; lists and dicts of modules cannot."""
    return type(module).forward is not nn.Module.forward or "forward" in vars(module)


def _is_layer(module: nn.Module) -> bool:
    return is_layer(module) or is_quantized(module)


def _has_layers(module: nn.Module) -> bool:
    return any(_is_layer(m) for m in module.modules())
