"""Whole channels, taken out of a network: smaller layers, not masked ones.

Only channels that stay inside are taken out: outputs of a layer that reach, through BatchNorm, activations, pools and depthwise
convolutions, nothing but the inputs of other layers. Channels that flow through adds and concatenations (the residual stream)
belong to many layers, and stay.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Any

import torch
from torch import Tensor, fx, nn

from qat.arguments import check_count, check_function, check_network, is_number
from qat.capture import CaptureError, capture, copy_model, training_graph
from qat.messages import shown
from qat.nn import is_batch_norm, is_identity_in_evaluation, is_layer, owns_weight
from qat.operations import Operations, Role, call_of, describe_graph, read_past_their_forward
from qat.operations.layers import Layer

ELEMENTWISE = frozenset(
    (
        *("relu", "relu6", "hardtanh", "clamp", "sigmoid", "tanh", "hardswish", "hardsigmoid", "silu", "gelu", "mish"),
        *("leaky_relu", "elu", "softplus", "identity"),
    )
)
"""Operations that keep channels apart, whichever axis the channels are on."""
POOLS = frozenset(
    (
        *("max_pool1d", "max_pool2d", "avg_pool1d", "avg_pool2d"),
        *("adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_max_pool2d"),
    )
)
"""Operations that keep channels apart if these are on the axis after the batch, and other axes follow."""
OF_OUTPUTS = ("weight", "bias", "running_mean", "running_var")
"""The tensors of a layer or a normalization that have an entry for each output. A layer that learns others, such as the bias
that torch.nn.utils.prune masks, keeps its channels."""


class ChannelAxis(Enum):
    """Where the channels of a tensor are.

    MIDDLE: after the batch and before space. ONLY: a matrix (N, C). LAST: of any tensor (..., C), whose number of axes is not
    known.
    """

    MIDDLE = auto()
    ONLY = auto()
    LAST = auto()


@dataclass
class ChannelGroup:
    """The output channels of one layer, and all that has one entry for each of them.

    producer: the layer. same_channels: BatchNorms and depthwise convolutions. consumers: layers that have them as inputs.
    """

    producer: str
    channels: int
    same_channels: list[str] = field(default_factory=list)
    consumers: list[str] = field(default_factory=list)


def channel_groups(model: nn.Module) -> list[ChannelGroup]:
    """The channels that can be taken out of a float network, layer by layer, in the order in which they run.

    Layers that only training runs count, too: an auxiliary head that reads channels has them as inputs.

    Raises:
        ValueError: the model has no graph, in evaluation or in training.
    """
    evaluated, trained = copy_model(model), copy_model(model)
    try:
        in_evaluation = _groups_of(model, evaluated, capture(evaluated).graph)
        in_training = _groups_of(model, trained, training_graph(trained))
    except CaptureError as error:
        raise ValueError(f"channels cannot be taken out of {type(model).__name__}: {error}") from error
    groups = []
    for name, group in in_evaluation.items():
        if (other := in_training.get(name)) is not None:
            same = list(dict.fromkeys(group.same_channels + other.same_channels))
            consumers = list(dict.fromkeys(group.consumers + other.consumers))
            groups.append(ChannelGroup(name, group.channels, same, consumers))
    return groups


def _groups_of(model: nn.Module, traced: nn.Module, graph: fx.Graph) -> dict[str, ChannelGroup]:
    """The groups of one graph, by producer. traced: the copy of `model` whose modules the graph names."""
    operations = describe_graph(traced, graph)
    calls = [str(node.target) for node in graph.nodes if node.op == "call_module"]
    groups = []
    for node in graph.nodes:
        if node.op == "call_module" and calls.count(str(node.target)) == 1 and _is_dense(operations[node]):
            layer = traced.get_submodule(str(node.target))
            group = ChannelGroup(str(node.target), int(layer.get_parameter("weight").shape[0]))
            axis = ChannelAxis.LAST if isinstance(layer, nn.Linear) else ChannelAxis.MIDDLE
            if _follow(node, axis, traced, operations, group, calls) and group.consumers:
                groups.append(group)
    read = read_past_their_forward(traced, graph)
    own, owners = dict(model.named_modules()), Counter(map(id, _parameters_of_all(model)))

    def is_free(name: str) -> bool:
        tensors = dict(own[name].named_parameters(recurse=False)) if name in own else {}
        return (
            name not in read and tensors.keys() <= set(OF_OUTPUTS) and all(owners[id(p)] == 1 for p in tensors.values())
        )

    return {g.producer: g for g in groups if all(map(is_free, (g.producer, *g.same_channels, *g.consumers)))}


def _parameters_of_all(model: nn.Module) -> list[nn.Parameter]:
    """The parameters of every module; one that several own occurs for each."""
    return [parameter for _, parameter in model.named_parameters(remove_duplicate=False)]


def remove_channels(
    model: nn.Module, share: float, chosen: Callable[[str], bool] = lambda name: True, multiple: int = 1
) -> dict[str, tuple[int, int]]:
    """Take out this share of the channels of every layer that can lose some, in place: those of the smallest filters.

    A filter counts by the sum of its magnitudes (Li et al. 2017, https://arxiv.org/abs/1608.08710, section 3.1), times the gain
    of its BatchNorm. At least one channel stays.

    Args:
        model: a float network.
        share: in [0, 1).
        chosen: whether a layer of this name may lose channels.
        multiple: the number of channels that stay is rounded up to a multiple of this, for N:M patterns and some processors.

    Returns:
        Layer -> (channels before, channels now), for the layers that lost some.

    Raises:
        ValueError: an argument is of another kind or out of range, the model has no graph, no layer can lose channels, or the
            share is too small for a single one.
    """
    check_network(model)
    check_function("chosen", chosen, "from the name of a layer to True or False")
    check_count("multiple", multiple)
    if not (is_number(share) and 0 <= share < 1):
        raise ValueError(f"share={shown(share)} is not a share of channels: write a number from 0 to below 1, as 0.5.")
    groups = [group for group in channel_groups(model) if chosen(group.producer)]
    if not groups:
        raise ValueError(
            f"no layer of {type(model).__name__} that was chosen has channels of its own: those that flow through adds and "
            "concatenations, or out of the network, stay. Write pruning of weights, sparsity=0.5, instead."
        )
    kept = {}
    for group in groups:
        wanted = max(1, group.channels - round(share * group.channels))
        kept[group.producer] = min(group.channels, -(-wanted // multiple) * multiple)
    if share and all(kept[group.producer] == group.channels for group in groups):
        most, of = max(group.channels for group in groups), "" if multiple == 1 else f" in multiples of {multiple}"
        raise ValueError(
            f"channels={share} takes no channel of any layer, of which the largest has {most}{of}: write a larger share."
        )
    shrink(model, kept, groups)
    return {g.producer: (g.channels, kept[g.producer]) for g in groups if kept[g.producer] < g.channels}


def shrink(model: nn.Module, kept: Mapping[str, int], groups: list[ChannelGroup] | None = None) -> None:
    """Let each layer keep `kept[name]` output channels, in place; a layer that has no more than these stays as it is.

    Raises:
        ValueError: a layer has no channels that can be taken out.
    """
    found = {group.producer: group for group in (groups or channel_groups(model))}
    for name, number in kept.items():
        if name not in found or not isinstance(number, int) or number < 1:
            raise ValueError(f"layer {name!r} of {type(model).__name__} cannot be reduced to {number!r} channels.")
        if number < found[name].channels:
            _select(model, found[name], _strongest(model, found[name], number))


@torch.no_grad()
def _strongest(model: nn.Module, group: ChannelGroup, number: int) -> Tensor:
    """The indices of the channels that stay, ascending."""
    strength = model.get_submodule(group.producer).get_parameter("weight").abs().flatten(1).sum(1).double()
    for name in group.same_channels:
        norm = model.get_submodule(name)
        if is_batch_norm(norm) and isinstance(getattr(norm, "weight", None), Tensor):
            strength = strength * norm.get_parameter("weight").abs()
    return strength.argsort(descending=True, stable=True)[:number].sort().values


def _select(model: nn.Module, group: ChannelGroup, places: Tensor) -> None:
    for name in (group.producer, *group.same_channels):
        _select_entries(model.get_submodule(name), 0, places)
    for name in group.consumers:
        _select_entries(model.get_submodule(name), 1, places)


@torch.no_grad()
def _select_entries(module: Any, axis: int, places: Tensor) -> None:
    """Keep these entries along one axis of the weight and, for axis 0, of the other tensors with an entry for each output.

    Parameters stay the same objects.
    """
    for name in ["weight"] if axis else OF_OUTPUTS:
        tensor = getattr(module, name, None)
        if isinstance(tensor, Tensor):
            tensor.data = tensor.data.index_select(axis, places.to(tensor.device)).contiguous()
    number = len(places)
    is_depthwise = axis == 0 and getattr(module, "groups", 1) > 1
    attributes = ("in_channels", "in_features") if axis else ("out_channels", "out_features", "num_features")
    for name in (*attributes, *(("in_channels", "groups") if is_depthwise else ())):
        if hasattr(module, name):
            setattr(module, name, number)


def _is_dense(operation: Any) -> bool:
    """Whether this is a convolution or linear layer without groups, with a weight of its own."""
    if not isinstance(operation, Layer) or operation.takes_indices:
        return False
    layer = operation.module
    is_plain = (
        isinstance(layer, nn.Conv1d | nn.Conv2d | nn.Conv3d | nn.Linear) and is_layer(layer) and owns_weight(layer)
    )
    return is_plain and getattr(layer, "groups", 1) == 1


def _is_depthwise(operation: Any) -> bool:
    layer = getattr(operation, "module", None)
    if not isinstance(layer, nn.Conv1d | nn.Conv2d | nn.Conv3d) or not owns_weight(layer):
        return False
    return 1 < layer.groups == layer.in_channels == layer.out_channels


def _axis_behind(model: nn.Module, node: fx.Node, axis: ChannelAxis, space: int) -> ChannelAxis | None:
    """Where the channels are after an operation that keeps each apart from all others; None if it does not.

    space: the number of axes after the channels in the producer's result, if these are in the middle.
    """
    if node.op == "call_module" and is_identity_in_evaluation(model.get_submodule(str(node.target))):
        return axis
    call = call_of(model, node)
    if len(node.all_input_nodes) != 1:
        return None
    if call.name in ELEMENTWISE:
        return axis
    if axis is not ChannelAxis.MIDDLE:
        return None
    if call.name in POOLS:
        return axis
    if call.name == "flatten":
        return ChannelAxis.ONLY if call.get("start_dim") == 1 and call.get("end_dim", -1) == -1 else None
    if call.name != "mean":
        return None
    dims = call.get("dim", ())
    over = dims if isinstance(dims, list | tuple) else [dims]
    if not over or not all(isinstance(d, int) and d % (space + 2) not in (0, 1) for d in over):
        return None
    if call.get("keepdim", False):
        return axis
    return ChannelAxis.ONLY if len(over) == space else None


def _follow(
    node: fx.Node, axis: ChannelAxis, model: nn.Module, operations: Operations, group: ChannelGroup, calls: list[str]
) -> bool:
    """Add what uses the channels of `node` to the group; False if a user mixes them, or may have them on another axis."""
    space = model.get_submodule(group.producer).get_parameter("weight").ndim - 2
    for user in node.users:
        operation, behind = operations[user], axis
        layer = model.get_submodule(str(user.target)) if user.op == "call_module" else None
        once = calls.count(str(user.target)) == 1
        if operation.role is Role.NORM or _is_depthwise(operation):
            if layer is None or not once or not _has_channels(layer, group.channels):
                return False
            if axis is not ChannelAxis.MIDDLE and not is_batch_norm(layer):
                return False
            group.same_channels.append(str(user.target))
        elif _is_dense(operation):
            assert layer is not None
            fits = isinstance(layer, nn.Linear) is (axis is not ChannelAxis.MIDDLE)
            if not once or not fits or layer.get_parameter("weight").shape[1] != group.channels:
                return False
            group.consumers.append(str(user.target))
            continue
        elif (found := _axis_behind(model, user, axis, space)) is None:
            return False
        else:
            behind = found
        if not _follow(user, behind, model, operations, group, calls):
            return False
    return bool(node.users)


def _has_channels(layer: nn.Module, channels: int) -> bool:
    """Whether a normalization or depthwise convolution has this number of channels."""
    return int(getattr(layer, "num_features", getattr(layer, "in_channels", 0))) == channels
