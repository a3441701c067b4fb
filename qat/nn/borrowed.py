"""Layers without a weight of their own: the weight is another module's parameter, or is computed from parameters."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from qat.contexts import training_mode
from qat.nn.layers import COMPUTING, as_quantized, layer_type
from qat.nn.rebuilt import with_class

Lookup = Callable[[nn.Module], Tensor]
"""Finds the tensor in the module that owns the parameters; can be pickled."""


def borrowing_layer(template: nn.Module, lender: nn.Module, weight: Lookup, bias: Lookup | None) -> nn.Module:
    """A layer that computes as `template` does, with a weight and a bias that are looked up at every call.

    It registers no parameter, so a state_dict keeps the names of the float model.

    Args:
        template: a layer of torch.nn, whose own parameters are not used.
        lender: the module that owns the parameters.
        weight: finds the weight, in the axes of a weight of `template`.
        bias: finds the bias; None: there is none.
    """
    layer = type(template).__new__(type(template))
    nn.Module.__init__(layer)
    copy_options(template, layer)
    vars(layer)["lender"] = (lender,)  # a tuple: the lender is not a submodule
    if bias is None:
        layer.register_parameter("bias", None)  # as in torch.nn, so that a pass may give it one
    with_class(layer, _borrowing, weight, bias)
    return layer


def owning_layer(layer: nn.Module) -> nn.Module:
    """A float layer of torch.nn that computes what another layer does, with copies of its weight and bias as parameters."""
    torch_class = layer_type(layer)
    found = torch_class.__new__(torch_class)
    nn.Module.__init__(found)
    vars(found).update({name: value for name, value in options(layer).items() if name != "lender"})
    for name in ("weight", "bias"):
        value = getattr(layer, name, None)
        found.register_parameter(name, None if value is None else nn.Parameter(value.detach().clone()))
    return found


def copy_options(source: nn.Module, layer: nn.Module) -> None:
    """Give `layer` the attributes of `source` that are not parameters, buffers, submodules or hooks: stride, padding, ..."""
    vars(layer).update(options(source))


def options(layer: nn.Module) -> dict[str, Any]:
    """The attributes of a module that are not parameters, buffers, submodules or hooks: stride, padding, ..."""
    of_every_module = vars(nn.Module())
    return {key: value for key, value in vars(layer).items() if key not in of_every_module}


def parameters_of_weight(layer: nn.Module) -> list[Tensor]:
    """The parameters from which the layer's weight is computed: one, unless it is parametrized or masked."""
    with torch.enable_grad(), training_mode(layer, False):
        weight = layer.weight
    assert isinstance(weight, Tensor)
    if weight.grad_fn is None:
        return [weight]
    found, todo, seen = [], [weight.grad_fn], set()
    while todo:
        function = todo.pop()
        if function not in seen:
            seen.add(function)
            found += [function.variable] if hasattr(function, "variable") else []
            todo += [f for f, _ in function.next_functions if f is not None]
    return found


def keep_weight(layer: nn.Module) -> None:
    """Let a quantized layer whose weight is computed keep the one that it has now, as the parameter `kept_weight`, in place.

    Without effect on a layer whose weight can be set. Hooks and parametrizations stay, and are not read any more.
    """
    weight, again = as_quantized(layer).weight, as_quantized(layer).weight
    if weight.data_ptr() != again.data_ptr():
        with_class(layer, _keeping)
        layer.register_parameter("kept_weight", nn.Parameter(weight.detach().clone()))


def recast(module: nn.Module, torch_class: type[nn.Module]) -> None:
    """Let `module`, whose class has a forward of its own, compute as its base `torch_class`, in place."""
    with_class(module, _computing_as, torch_class)


def _borrowing(base: type[nn.Module], weight: Lookup, bias: Lookup | None) -> type[nn.Module]:
    def looked_up(lookup: Lookup) -> property:
        return property(lambda self: lookup(self.lender[0]))

    members: dict[str, Any] = {"weight": looked_up(weight)} | ({} if bias is None else {"bias": looked_up(bias)})
    return type(base.__name__, (base,), {**members, "__module__": base.__module__})


def _keeping(base: type[nn.Module]) -> type[nn.Module]:
    weight = property(lambda self: self.kept_weight, lambda self, value: None)  # a hook's own value is dropped
    return type(base.__name__, (base,), {"weight": weight, "__module__": base.__module__})


def _computing_as(base: type[nn.Module], torch_class: type[nn.Module]) -> type[nn.Module]:
    members = {name: getattr(torch_class, name) for name in COMPUTING if hasattr(torch_class, name)}
    members["computes_as"] = torch_class
    return type(base.__name__, (base,), {**members, "__module__": base.__module__})
