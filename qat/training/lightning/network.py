"""Which part of a LightningModule is the network, and the same LightningModule around another network."""

from __future__ import annotations

import copy
from types import MethodType

import lightning as L
from torch import nn

from qat.nn import LAYERS, is_quantized
from qat.transform.capture import CaptureError, capture


def find_network(module: L.LightningModule, name: str | None = None) -> str:
    """The name of the submodule to quantize; "" is the LightningModule itself, whose own forward is the network.

    That is `name`, if given; else what was prepared before; else the only child with layers inside; else the
    LightningModule itself, if its forward can be traced.

    Raises:
        ValueError: there is no such submodule, or several could be meant.
    """
    kind = type(module).__name__
    if name is not None:
        if name not in dict(module.named_modules()):
            choices = ", ".join(repr(n) for n, child in module.named_children() if _has_layers(child)) or "none"
            raise ValueError(f"network={name!r} is no submodule of {kind}; its submodules with layers are: {choices}.")
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
    if len(children) == 1 and not _is_layer(only):
        return children[0]
    loose = any(_is_layer(module.get_submodule(n)) for n in children)
    if _has_own_forward(module) and (loose or _can_be_captured(module)):
        return ""
    names = ", ".join(repr(n) for n in children)
    raise ValueError(
        f"{kind} has several submodules with layers ({names}) and no forward that can be traced: "
        f"say which one is the network, QuantizationAwareTraining(policy, network={children[0]!r})."
    )


def is_prepared_root(module: nn.Module) -> bool:
    """Whether `prepare` was called on this very module, not on one around it or inside it."""
    return "_qat" in vars(module)


def with_network(module: L.LightningModule, name: str, network: nn.Module) -> L.LightningModule:
    """A LightningModule that shares everything with `module` but its submodules, and computes with `network` instead.

    The steps are the user's own. Its children (metrics, losses) are copies; the network at `name` is replaced, and for
    name "" the forward is.
    """
    twin = copy.copy(module)  # Lightning leaves the trainer out
    vars(twin)["_modules"] = {n: child if n == name else copy.deepcopy(child) for n, child in module.named_children()}
    for attribute, value in vars(module).items():
        if isinstance(value, MethodType) and value.__self__ is module:  # such as the forward that DDP leaves behind
            vars(twin)[attribute] = MethodType(value.__func__, twin)
    if name:
        owner, _, attribute = name.rpartition(".")
        setattr(twin.get_submodule(owner), attribute, network)
    else:
        twin.add_module("network_under_test", network)
        vars(twin)["forward"] = network.__call__
    vars(twin)["_metric_attributes"] = None  # where Lightning remembers the metrics of `module` by identity
    vars(twin)["configure_callbacks"] = list  # a callback that comes with the module would prepare the network again
    return twin


def _has_own_forward(module: L.LightningModule) -> bool:
    return type(module).forward is not L.LightningModule.forward


def _can_be_captured(module: nn.Module) -> bool:
    try:
        capture(module)
    except CaptureError:
        return False
    return True


def _is_layer(module: nn.Module) -> bool:
    return type(module) in LAYERS or is_quantized(module)


def _has_layers(module: nn.Module) -> bool:
    return any(_is_layer(m) for m in module.modules())
