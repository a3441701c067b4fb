"""Which tensors of a graph become sites. Pure analysis: nothing is changed here.

Every real tensor gets one activation quantizer per precision it is needed in, after the fused operation that produces it
(conv-BatchNorm-ReLU, add-ReLU, ...), shared by all its consumers.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn
from torch.nn.modules.batchnorm import _BatchNorm

from qat.nn import LAYERS, is_quantized
from qat.quantizers import Quantizer
from qat.transform.policy import Policy, Rule, TensorRule


class Kind(Enum):
    """What a node of the graph does, as far as quantization is concerned."""

    INPUT = "input"
    COMPUTE = "compute"
    NORM = "norm"
    RECTIFY = "rectify"
    ADD = "add"
    CAT = "cat"
    POOL = "pool"
    SAME = "same"
    """Moves, drops or repeats values (or takes their maximum), so its output lies on the grid of its input."""
    SHAPE = "shape"
    """Sizes and what is calculated from sizes alone; no tensor."""
    SITE = "site"
    OUTPUT = "output"
    FLOAT = "float"


_MODULES: dict[type[nn.Module], Kind] = {
    **dict.fromkeys((nn.ReLU, nn.ReLU6), Kind.RECTIFY),
    **dict.fromkeys((nn.AvgPool2d, nn.AdaptiveAvgPool2d), Kind.POOL),
    **dict.fromkeys((nn.MaxPool2d, nn.Flatten, nn.Unflatten, nn.PixelShuffle, nn.PixelUnshuffle), Kind.SAME),
}
_FUNCTIONS: dict[Callable[..., Any], Kind] = {
    **dict.fromkeys((F.relu, torch.relu, F.relu6), Kind.RECTIFY),
    **dict.fromkeys((operator.add, operator.iadd, torch.add), Kind.ADD),
    torch.cat: Kind.CAT,
    **dict.fromkeys((F.avg_pool2d, F.adaptive_avg_pool2d), Kind.POOL),
    **dict.fromkeys((F.max_pool2d, operator.getitem, F.pad, F.pixel_shuffle, F.pixel_unshuffle), Kind.SAME),
    **dict.fromkeys((torch.flatten, torch.reshape, torch.permute, torch.transpose), Kind.SAME),
    **dict.fromkeys((torch.unsqueeze, torch.squeeze, torch.select, torch.narrow, torch.flip), Kind.SAME),
}
_METHODS: dict[str, Kind] = {
    **dict.fromkeys(("relu", "relu_"), Kind.RECTIFY),
    **dict.fromkeys(("add", "add_"), Kind.ADD),
    **dict.fromkeys(("flatten", "view", "reshape", "permute", "transpose", "contiguous", "detach"), Kind.SAME),
    **dict.fromkeys(("unsqueeze", "squeeze", "select", "narrow", "flip", "expand", "repeat", "unflatten"), Kind.SAME),
}
_FLOATING = (Kind.FLOAT, Kind.NORM)
_NONNEGATIVE: tuple[Any, ...] = (nn.Sigmoid, nn.Softmax, torch.sigmoid, torch.softmax, F.softmax, torch.abs, torch.exp)


@dataclass
class Site:
    """One activation quantizer to be: after `node`, or, with `consumers`, between `node` and those consumers only."""

    name: str
    node: fx.Node
    rule: TensorRule
    signed: bool
    consumers: list[fx.Node] = field(default_factory=list)


@dataclass
class Plan:
    """layers: name -> rule, in the order in which they run. sites: in graph order. float_edges: tensors left in float."""

    layers: dict[str, Rule]
    sites: list[Site]
    float_edges: list[str]


def kind_of(model: nn.Module, node: fx.Node) -> Kind:
    """What `node` does."""
    if node.op in ("placeholder", "output"):
        return Kind.INPUT if node.op == "placeholder" else Kind.OUTPUT
    if node.op == "call_module":
        module = model.get_submodule(str(node.target))
        if isinstance(module, Quantizer):
            return Kind.SITE
        if type(module) in LAYERS or is_quantized(module):
            return Kind.COMPUTE
        if isinstance(module, nn.AdaptiveAvgPool2d) and not _is_one(module.output_size):
            return Kind.FLOAT
        if getattr(module, "return_indices", False):
            return Kind.FLOAT
        if is_identity_in_evaluation(module):
            return Kind.SAME
        return Kind.NORM if isinstance(module, _BatchNorm) else _MODULES.get(type(module), Kind.FLOAT)
    if _is_shape(node):
        return Kind.SHAPE
    table: Mapping[Any, Kind] = _METHODS if node.op == "call_method" else _FUNCTIONS
    kind = table.get(node.target, Kind.FLOAT)
    if kind is Kind.ADD and not (
        len(node.args) == 2 and all(isinstance(a, fx.Node) for a in node.args) and not node.kwargs
    ):
        return Kind.FLOAT  # a constant or alpha= takes part
    if node.target == "mean" or node.target is torch.mean:
        return Kind.POOL if mean_axes(node) == (2, 3) else Kind.FLOAT
    if node.target is F.pad and not pads_with_zeros(*node.args, **node.kwargs):
        return Kind.FLOAT
    if node.target is F.adaptive_avg_pool2d and not _is_one((*node.args[1:], *node.kwargs.values())[0]):
        return Kind.FLOAT
    if node.target is operator.getitem and not isinstance(node.args[1], tuple):
        return Kind.FLOAT  # an element of a tuple, a shape, ...
    return kind


def is_identity_in_evaluation(module: nn.Module) -> bool:
    """Whether it drops values, or whole branches (stochastic depth), in training alone. Drop paths are known by their name:
    torchvision, timm and transformers have each their own.
    """
    dropouts = (nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d)
    return type(module) in dropouts or type(module).__name__.endswith(("StochasticDepth", "DropPath"))


def _is_shape(node: fx.Node) -> bool:
    if node.target in ("size", "dim", "numel") or (node.target is getattr and node.args[1] in ("shape", "ndim")):
        return True
    inputs = node.all_input_nodes
    return node.op == "call_function" and bool(inputs) and all(_is_shape(n) for n in inputs)


def pads_with_zeros(x: Any, pad: Any, mode: Any = "constant", value: Any = None) -> bool:
    """Whether these arguments of F.pad put zeros around x."""
    return mode == "constant" and not value


def _is_one(size: Any) -> bool:
    """Whether an adaptive pool is a global one; others have no integer form."""
    return size in (1, (1, 1), [1, 1])


def mean_axes(node: fx.Node) -> tuple[int, ...]:
    """The axes of a mean over an [N, C, H, W] tensor, counted from the front."""
    axes = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", ())
    axes = (axes,) if isinstance(axes, int) else axes
    return tuple(sorted(a % 4 for a in axes if isinstance(a, int))) if isinstance(axes, list | tuple) else ()


def ceiling(model: nn.Module, node: fx.Node) -> float | None:
    """Where a RECTIFY node cuts from above: 6 for ReLU6, None for ReLU."""
    six = node.target is F.relu6 or (
        node.op == "call_module" and isinstance(model.get_submodule(str(node.target)), nn.ReLU6)
    )
    return 6.0 if six else None


def plan(model: nn.Module, graph: fx.Graph, policy: Policy) -> Plan:
    """Decide layers and sites.

    Raises:
        ValueError: a rule matches no layer, or nothing could be quantized at all.
    """
    kinds = {node: kind_of(model, node) for node in graph.nodes}
    computes = [n for n in graph.nodes if kinds[n] is Kind.COMPUTE]
    named = {str(n.target): type(model.get_submodule(str(n.target))).__name__ for n in computes}
    layers = policy.assign(list(named.items()))
    stream = policy.stream()
    result = Plan(layers, [], [])
    names = set(dir(nn.ModuleDict))  # a site called `values` would hide a method of the dict that holds it
    for node in graph.nodes:
        if kinds[node] in (Kind.OUTPUT, Kind.SAME, Kind.SHAPE, Kind.SITE) or _is_inside(node, kinds):
            continue
        demands = [(at, user, _demand(user, kinds, layers, stream)) for at, user in _consumers(node, kinds)]
        name = _unique(_site_name(node, kinds), names)
        dynamic = [(at, user, rule) for at, user, rule in demands if rule is not None and rule.is_dynamic]
        if dynamic:
            demands = [demand for demand in demands if demand not in dynamic]
            result.sites += _dynamic_sites(_unique(f"{name}_dynamic", names), dynamic)
            if not demands:
                continue
        wanted = [rule for _, _, rule in demands if rule is not None]
        streamed = any(kinds[user] is not Kind.COMPUTE for _, user, rule in demands if rule is not None)
        if (
            not wanted
            and _head(node, kinds) in computes
            and any(kinds[u] in _FLOATING for _, u, _ in demands)
            and stream
        ):
            wanted, streamed = [stream], True  # keeps the layer itself in integers
        if not wanted:
            if not _floats(node, kinds) and any(kinds[user] is not Kind.OUTPUT for _, user, _ in demands):
                result.float_edges.append(name)
            continue
        base = stream if streamed and stream else max(wanted, key=lambda rule: rule.bits)
        signed = not _nonnegative(model, node, kinds)
        result.sites.append(Site(name, node, base, signed))
        lower: dict[tuple[fx.Node, int], Site] = {}
        for at, user, rule in demands:
            if rule is not None and rule.bits < base.bits and kinds[user] is Kind.COMPUTE:
                site = lower.setdefault((at, rule.bits), Site("", at, rule, signed))
                site.consumers.append(user)
        for (_, bits), site in lower.items():
            site.name = _unique(f"{name}_to_{bits}_bits", names)
            result.sites.append(site)
    result.float_edges += [f"{n.name} ({_operation(model, n)})" for n in graph.nodes if _floats(n, kinds)]
    if not result.layers:
        raise ValueError(
            "the policy quantizes no layer: the model has no Conv1d, Conv2d or Linear, or no rule matches one."
        )
    return result


def _dynamic_sites(name: str, demands: list[tuple[fx.Node, fx.Node, TensorRule]]) -> list[Site]:
    """One site for all layers that read the same tensor with a range of its own; everything else reads the float tensor."""
    sites: dict[fx.Node, Site] = {}
    for at, user, rule in demands:
        site = sites.setdefault(at, Site(name if not sites else f"{name}_{len(sites) + 1}", at, rule, signed=False))
        site.consumers.append(user)
    return list(sites.values())


def _floats(node: fx.Node, kinds: Mapping[fx.Node, Kind]) -> bool:
    """Whether the operation is left in float: not known here, or a BatchNorm without a layer to absorb it."""
    alone = kinds[node] is Kind.NORM and not _is_inside(node.all_input_nodes[0], kinds)
    return kinds[node] is Kind.FLOAT or alone


def _only_user(node: fx.Node) -> fx.Node | None:
    return next(iter(node.users)) if len(node.users) == 1 else None


def _is_inside(node: fx.Node, kinds: Mapping[fx.Node, Kind]) -> bool:
    """Whether the tensor exists only inside a fused operation: conv before BatchNorm, anything fused before ReLU."""
    user = _only_user(node)
    if user is None:
        return False
    if kinds[user] is Kind.NORM:
        return kinds[node] is Kind.COMPUTE
    fused = kinds[node] in (Kind.COMPUTE, Kind.ADD) or (
        kinds[node] is Kind.NORM and _is_inside(node.all_input_nodes[0], kinds)
    )
    return kinds[user] is Kind.RECTIFY and fused


def _head(node: fx.Node, kinds: Mapping[fx.Node, Kind]) -> fx.Node:
    """The first node of the fused operation that ends in `node`."""
    while kinds[node] in (Kind.NORM, Kind.RECTIFY) and _is_inside(node.all_input_nodes[0], kinds):
        node = node.all_input_nodes[0]
    return node


def _consumers(node: fx.Node, kinds: Mapping[fx.Node, Kind]) -> list[tuple[fx.Node, fx.Node]]:
    """(tensor, consumer) for every use, looking through operations that keep the values on their grid."""
    found = []
    for user in node.users:
        if kinds[user] is not Kind.SHAPE:
            found += _consumers(user, kinds) if kinds[user] is Kind.SAME else [(node, user)]
    return found


def _demand(
    user: fx.Node, kinds: Mapping[fx.Node, Kind], layers: Mapping[str, Rule], stream: TensorRule | None
) -> TensorRule | None:
    """The precision in which `user` wants its input; None: it takes floats."""
    if kinds[user] is Kind.COMPUTE:
        rule = layers.get(str(user.target))
        return rule.activation if rule else None
    return stream if kinds[user] in (Kind.ADD, Kind.CAT, Kind.POOL, Kind.RECTIFY) else None


def _nonnegative(model: nn.Module, node: fx.Node, kinds: Mapping[fx.Node, Kind]) -> bool:
    """Whether the graph alone says that the tensor has no negative value."""
    kind = kinds[node]
    if kind is Kind.RECTIFY:
        return True
    if kind in (Kind.SAME, Kind.POOL, Kind.ADD, Kind.CAT, Kind.SITE):
        return all(_nonnegative(model, n, kinds) for n in node.all_input_nodes if kinds[n] is not Kind.SHAPE)
    target = type(model.get_submodule(str(node.target))) if node.op == "call_module" else node.target
    return target in _NONNEGATIVE


def _site_name(node: fx.Node, kinds: Mapping[fx.Node, Kind]) -> str:
    """Named after the layer that starts the fused operation: layer1_0_conv1; inputs after their argument: x_input."""
    if kinds[node] is Kind.INPUT:
        return f"{node.target}_input"
    head = _head(node, kinds)
    stack = head.meta.get("nn_module_stack") or {}
    owner = str(next(reversed(stack))).partition("@")[0] if stack and head.op != "call_module" else ""
    name = str(head.target) if head.op == "call_module" else f"{owner}.{head.name}" if owner else head.name
    return name.replace(".", "_")


def _unique(name: str, taken: set[str]) -> str:
    number, candidate = 1, name
    while candidate in taken:
        number += 1
        candidate = f"{name}_{number}"
    taken.add(candidate)
    return candidate


def _operation(model: nn.Module, node: fx.Node) -> str:
    if node.op == "call_module":
        return type(model.get_submodule(str(node.target))).__name__
    return getattr(node.target, "__name__", str(node.target))
