"""Decide which tensors of a graph get a quantizer. Pure analysis: nothing is changed here.

Every real tensor gets one activation quantizer for each precision in which it is needed. The quantizer sits behind the fused
operation that produces the tensor (conv-BatchNorm-ReLU, add-ReLU, ...), and all consumers share it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import fx, nn

from qat.nn import layer_type
from qat.transform.operation_kind import OperationKind, kind_of
from qat.transform.policy import Policy, Rule, TensorRule

Kinds = Mapping[fx.Node, OperationKind]

_NONNEGATIVE: tuple[Any, ...] = (nn.Sigmoid, nn.Softmax, torch.sigmoid, torch.softmax, F.softmax, torch.abs, torch.exp)
"""Operations whose output is never negative, whatever their input."""


@dataclass
class Site:
    """A planned activation quantizer: behind `node`, or, with `consumers`, between `node` and those consumers only."""

    name: str
    node: fx.Node
    rule: TensorRule
    signed: bool
    consumers: list[fx.Node] = field(default_factory=list)


@dataclass
class Plan:
    """Where quantization goes in one graph.

    layers: name -> rule, in the order in which the layers run. sites: in graph order. float_edges: tensors left in float.
    """

    layers: dict[str, Rule]
    sites: list[Site]
    float_edges: list[str]


class _Use(NamedTuple):
    """One use of a tensor. rule: the precision in which the consumer wants it; None if it takes floats."""

    tensor: fx.Node
    consumer: fx.Node
    rule: TensorRule | None


def plan(model: nn.Module, graph: fx.Graph, policy: Policy) -> Plan:
    """Decide the rules of the layers, and the sites.

    Raises:
        ValueError: a rule matches no layer.
    """
    kinds = {node: kind_of(model, node) for node in graph.nodes}
    layer_names = [str(node.target) for node in graph.nodes if kinds[node] is OperationKind.COMPUTE]
    types = {name: layer_type(model.get_submodule(name)).__name__ for name in layer_names}
    layers = policy.assign(list(types.items()))
    residual = policy.residual_rule()
    sites: list[Site] = []
    float_edges: list[str] = []
    taken = set(dir(nn.ModuleDict))  # a site called `values` would hide a method of the dict that holds it
    for node in graph.nodes:
        if not _is_real_tensor(node, kinds):
            continue
        uses = [
            _Use(tensor, consumer, _wanted_rule(consumer, kinds, layers, residual))
            for tensor, consumer in _consumers(node, kinds)
        ]
        name = _unique(_site_name(node, kinds), taken)
        dynamic = [use for use in uses if use.rule is not None and use.rule.is_dynamic]
        static = [use for use in uses if use not in dynamic]
        if dynamic:
            sites += _dynamic_sites(_unique(f"{name}_dynamic", taken), dynamic)
            if not static:
                continue
        base = _base_rule(node, static, kinds, residual)
        if base is not None:
            site = Site(name, node, base, signed=not _is_nonnegative(model, node, kinds))
            sites += [site, *_requantizations(site, static, kinds, taken)]
        elif not _stays_float(node, kinds) and any(kinds[use.consumer] is not OperationKind.OUTPUT for use in static):
            float_edges.append(name)
    float_edges += [f"{n.name} ({_operation(model, n)})" for n in graph.nodes if _stays_float(n, kinds)]
    return Plan(layers, sites, float_edges)


def _is_real_tensor(node: fx.Node, kinds: Kinds) -> bool:
    """Whether the node produces new values that exist in memory: not a view, not a size, not inside a fused operation."""
    unreal = (OperationKind.OUTPUT, OperationKind.SAME, OperationKind.SHAPE, OperationKind.SITE)
    return kinds[node] not in unreal and not _is_inside_fusion(node, kinds)


def _base_rule(node: fx.Node, uses: list[_Use], kinds: Kinds, residual: TensorRule | None) -> TensorRule | None:
    """The rule of the quantizer behind `node`: the widest one wanted, or the residual rule; None if the tensor stays float."""
    wanted = [use.rule for use in uses if use.rule is not None]
    if not wanted:
        feeds_float = any(kinds[use.consumer] in (OperationKind.FLOAT, OperationKind.NORM) for use in uses)
        ends_layer = kinds[_head(node, kinds)] is OperationKind.COMPUTE
        return residual if ends_layer and feeds_float else None  # keeps the layer itself in integers
    feeds_residual = any(kinds[use.consumer] is not OperationKind.COMPUTE for use in uses if use.rule is not None)
    return residual if feeds_residual and residual is not None else max(wanted, key=lambda rule: rule.bits)


def _requantizations(base: Site, uses: list[_Use], kinds: Kinds, taken: set[str]) -> list[Site]:
    """Sites behind `base` for layers that want fewer bits: one for each tensor and width."""
    lower: dict[tuple[fx.Node, int], Site] = {}
    for tensor, consumer, rule in uses:
        if rule is not None and rule.bits < base.rule.bits and kinds[consumer] is OperationKind.COMPUTE:
            site = lower.setdefault((tensor, rule.bits), Site("", tensor, rule, base.signed))
            site.consumers.append(consumer)
    for (_, bits), site in lower.items():
        site.name = _unique(f"{base.name}_to_{bits}_bits", taken)
    return list(lower.values())


def _dynamic_sites(name: str, uses: Iterable[_Use]) -> list[Site]:
    """Sites with dynamic ranges: one for each tensor, shared by the layers that read it. Other consumers read floats."""
    sites: dict[fx.Node, Site] = {}
    for tensor, consumer, rule in uses:
        assert rule is not None
        numbered = name if not sites else f"{name}_{len(sites) + 1}"
        site = sites.setdefault(tensor, Site(numbered, tensor, rule, signed=False))
        site.consumers.append(consumer)
    return list(sites.values())


def _stays_float(node: fx.Node, kinds: Kinds) -> bool:
    """Whether the operation is left in float: not known here, or a BatchNorm without a layer to absorb it."""
    alone = kinds[node] is OperationKind.NORM and not _is_inside_fusion(node.all_input_nodes[0], kinds)
    return kinds[node] is OperationKind.FLOAT or alone


def _only_user(node: fx.Node) -> fx.Node | None:
    return next(iter(node.users)) if len(node.users) == 1 else None


def _is_inside_fusion(node: fx.Node, kinds: Kinds) -> bool:
    """Whether the tensor exists only inside a fused operation: conv before BatchNorm, anything fused before ReLU."""
    user = _only_user(node)
    if user is None:
        return False
    if kinds[user] is OperationKind.NORM:
        return kinds[node] is OperationKind.COMPUTE
    fused = kinds[node] in (OperationKind.COMPUTE, OperationKind.ADD) or (
        kinds[node] is OperationKind.NORM and _is_inside_fusion(node.all_input_nodes[0], kinds)
    )
    return kinds[user] is OperationKind.RECTIFY and fused


def _head(node: fx.Node, kinds: Kinds) -> fx.Node:
    """The first node of the fused operation that ends in `node`."""
    while kinds[node] in (OperationKind.NORM, OperationKind.RECTIFY) and _is_inside_fusion(
        node.all_input_nodes[0], kinds
    ):
        node = node.all_input_nodes[0]
    return node


def _consumers(node: fx.Node, kinds: Kinds) -> list[tuple[fx.Node, fx.Node]]:
    """(tensor, consumer) of every use, looking through operations that keep the values on their grid."""
    found = []
    for user in node.users:
        if kinds[user] is not OperationKind.SHAPE:
            found += _consumers(user, kinds) if kinds[user] is OperationKind.SAME else [(node, user)]
    return found


def _wanted_rule(
    consumer: fx.Node, kinds: Kinds, layers: Mapping[str, Rule], residual: TensorRule | None
) -> TensorRule | None:
    """The precision in which `consumer` wants its input; None if it takes floats."""
    if kinds[consumer] is OperationKind.COMPUTE:
        rule = layers.get(str(consumer.target))
        return rule.activation if rule else None
    in_integers = (OperationKind.ADD, OperationKind.CAT, OperationKind.POOL, OperationKind.RECTIFY)
    return residual if kinds[consumer] in in_integers else None


def _is_nonnegative(model: nn.Module, node: fx.Node, kinds: Kinds) -> bool:
    """Whether the graph alone shows that the tensor has no negative value."""
    kind = kinds[node]
    if kind is OperationKind.RECTIFY:
        return True
    if kind in (OperationKind.SAME, OperationKind.POOL, OperationKind.ADD, OperationKind.CAT, OperationKind.SITE):
        return all(
            _is_nonnegative(model, n, kinds) for n in node.all_input_nodes if kinds[n] is not OperationKind.SHAPE
        )
    target = type(model.get_submodule(str(node.target))) if node.op == "call_module" else node.target
    return target in _NONNEGATIVE


def _site_name(node: fx.Node, kinds: Kinds) -> str:
    """The name of the layer that starts the fused operation (layer1_0_conv1); for an input, of its argument (x_input)."""
    if kinds[node] is OperationKind.INPUT:
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
