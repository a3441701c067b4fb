"""Functions with a parameter as weight (F.conv2d, F.linear, x @ w, ...) become calls of layers."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, fx, nn

from qat.capture.canonical.functional_call import FunctionalCall, functional_call, template
from qat.capture.graphs.rewriting import (
    attribute_of,
    common_owner,
    erase_unused,
    lookup,
    owner_of,
    parameter_nodes,
    replace_by_module,
)
from qat.nn import borrowing_layer, copy_options, is_layer, is_quantized, layer_type, options, owns_weight, recast


def layers_as_modules(model: nn.Module, graph: fx.Graph) -> bool:
    """Replace functions whose weight depends on parameters alone by calls of layers, in place.

    If the module that owns the weight is a subclass of the layer with a forward of its own (a convolution that pads), it
    becomes the layer. Otherwise a layer is added under it, which borrows the weight.

    Returns:
        Whether a module was recast.
    """
    parameters = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    by_weight: dict[
        tuple[fx.Node, fx.Node | None, type[nn.Module]], list[FunctionalCall]
    ] = {}  # an embedding may be tied
    for call in _calls_with_parameters(graph, parameters):
        by_weight.setdefault((call.weight, call.bias, call.layer), []).append(call)
    changed = False
    for calls in by_weight.values():
        owner = owner_of(calls[0].weight)
        layers = [name for name in _holders(model, calls[0].weight) if _is_already_the_layer(model, name, calls)]
        if layers:
            for call in calls:
                _replace(call, layers[0])
        elif owner is not None and _is_the_layer(model, owner, calls):
            layer = model.get_submodule(owner)
            changed |= type(layer).forward is not calls[0].layer.forward
            recast(layer, calls[0].layer)
            copy_options(template(calls[0], _value(model, calls[0], parameters)), layer)
            for call in calls:
                _replace(call, owner)
        else:
            names: dict[str, str | None] = {}  # by options: calls that compute the same share a layer
            for call in calls:
                key = f"{call.layer.__name__} {call.options} {call.transposed}"
                name = names[key] if key in names else names.setdefault(key, _added(model, call, parameters))
                if name is not None:
                    _replace(call, name)
    return changed


def _calls_with_parameters(graph: fx.Graph, parameters: set[str]) -> list[FunctionalCall]:
    """The calls whose weight depends on parameters alone, except those that calculate the weight of another call (LoRA)."""
    calls: list[FunctionalCall] = []
    calculating: set[fx.Node] = set()
    for node in graph.nodes:
        call = functional_call(node)
        if call is None:
            continue
        sources = [parameter_nodes(n, parameters) for n in (call.weight, call.bias) if n is not None]
        if None not in sources:
            calls.append(call)
            calculating.update(n for nodes in sources for n in nodes or ())
    return [call for call in calls if call.node not in calculating]


def _holders(model: nn.Module, weight: fx.Node) -> list[str]:
    """The names of all modules that have this parameter, which may be tied, as `weight`."""
    if weight.op != "get_attr":
        return []
    parameters = dict(model.named_parameters(remove_duplicate=False))
    parameter = parameters.get(str(weight.target))
    names = [name for name, other in parameters.items() if other is parameter and name.endswith(".weight")]
    return [name.removesuffix(".weight") for name in names]


def _replace(call: FunctionalCall, name: str) -> None:
    """Put a call of the layer in the place of the function, and drop what only computed its weight and bias."""
    again = functional_call(call.node)  # its input may have been replaced, too
    assert again is not None
    replace_by_module(call.node, name, (again.input,))
    erase_unused(node for node in (call.weight, call.bias) if node is not None)


def _is_already_the_layer(model: nn.Module, owner: str, calls: Sequence[FunctionalCall]) -> bool:
    """Whether the owner of the weight is a layer that computes all these calls as it is."""
    module = model.get_submodule(owner)
    if not is_layer(module) or layer_type(module) is not calls[0].layer or not owns_weight(module):
        return False
    bias = calls[0].bias
    if (module.bias is not None if hasattr(module, "bias") else False) != (bias is not None):
        return False
    if bias is not None and (owner_of(bias), attribute_of(bias)) != (owner, "bias"):
        return False
    plain = [options(template(call, torch.empty(module.weight.shape, device="meta"))) for call in calls]  # type: ignore[arg-type]
    ours = options(module)
    return all(ours[key] == value for p in plain for key, value in p.items())


def _is_the_layer(model: nn.Module, owner: str, calls: Sequence[FunctionalCall]) -> bool:
    """Whether all calls compute what the base class in torch.nn of the weight's owner computes."""
    first, module = calls[0], model.get_submodule(owner)
    other_uses = [user for user in first.weight.users if user not in [call.node for call in calls]]
    bias = getattr(module, "bias", None)
    return (
        isinstance(module, first.layer)
        and not (is_layer(module) or is_quantized(module) or other_uses or first.transposed)
        and attribute_of(first.weight) == "weight"
        and (bias is not None) == (first.bias is not None)
        and (first.bias is None or (owner_of(first.bias) == owner and attribute_of(first.bias) == "bias"))
        and all(call.layer is first.layer and call.options == first.options for call in calls)
    )


def _added(model: nn.Module, call: FunctionalCall, parameters: set[str]) -> str | None:
    """The name of a new layer that computes the call; None if there is no such layer."""
    nodes = parameter_nodes(call.weight, parameters) or []
    bias_nodes = (parameter_nodes(call.bias, parameters) or []) if call.bias is not None else []
    with torch.no_grad():
        weight: Tensor = lookup(nodes, "")(model)
    if weight.ndim != template_axes(call) or not weight.is_floating_point():
        return None
    weight = weight.t() if call.transposed else weight
    if call.bias is not None and lookup(bias_nodes, "")(model).ndim != 1:
        return None
    owner = common_owner([*nodes, *bias_nodes])
    lender = model.get_submodule(owner)
    layer = borrowing_layer(
        template(call, weight),
        lender,
        lookup(nodes, owner, call.transposed),
        lookup(bias_nodes, owner) if bias_nodes else None,
    )
    attribute = "weight" if owner_of(call.weight) is None else attribute_of(call.weight)
    name = attribute.removesuffix("weight").strip("_") or call.layer.__name__.lower()
    number, free = 1, name
    while hasattr(lender, free):
        number += 1
        free = f"{name}_{number}"
    lender.add_module(free, layer.train(lender.training))
    return f"{owner}.{free}".lstrip(".")


def template_axes(call: FunctionalCall) -> int:
    """The number of axes of the weight of such a layer."""
    return 2 if call.layer in (nn.Linear, nn.Embedding) else int(call.layer.__name__[-2]) + 2


@torch.no_grad()
def _value(model: nn.Module, call: FunctionalCall, parameters: set[str]) -> Tensor:
    """The weight of the call now, in the axes of a weight of the layer."""
    value: Tensor = lookup(parameter_nodes(call.weight, parameters) or [], "", call.transposed)(model)
    return value
