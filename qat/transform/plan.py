"""Decide which tensors of a graph get a quantizer. Pure analysis: nothing is changed here.

Every real tensor gets one activation quantizer for each precision in which it is needed. The quantizer sits behind the fused
operation that produces the tensor (conv-BatchNorm-ReLU, add-ReLU, ...), and all consumers share it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from torch import fx, nn

from qat.nn import layer_type, matrices_of, matrix_type
from qat.operations import (
    Add,
    Elementwise,
    Float,
    Layer,
    MatMul,
    Multiply,
    Operation,
    Operations,
    Part,
    Rectify,
    Role,
    describe_graph,
    has_form_alone,
)
from qat.transform.policy import Policy
from qat.transform.rule import Rule
from qat.transform.target_grids import target_grids
from qat.transform.tensor_rule import TensorRule


@dataclass
class Site:
    """A planned activation quantizer: behind `node`, or, with `consumers`, between `node` and those consumers only.

    signed: whether the tensor has negative values; None leaves it to the data.
    behind_relu: whether `node` is a ReLU without an upper bound.
    """

    name: str
    node: fx.Node
    rule: TensorRule
    signed: bool | None
    behind_relu: bool = False
    consumers: list[fx.Node] = field(default_factory=list)


@dataclass
class Plan:
    """Where quantization goes in one graph.

    layers: name -> rule, in the order in which the layers run, then other modules with weight matrices. sites: in graph order.
    float_edges: tensors left in float.
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
        ValueError: a rule matches no layer, or the policy's target has no kernel for a layer.
    """
    operations = describe_graph(model, graph)
    nonnegative = _nonnegative(operations)
    layer_names = [str(node.target) for node in graph.nodes if operations[node].role is Role.LAYER]
    types = {name: layer_type(model.get_submodule(name)).__name__ for name in layer_names}
    others = {
        str(node.target): matrix_type(module)
        for node in graph.nodes
        if operations[node].role is Role.FLOAT and node.op == "call_module"
        if matrices_of(module := model.get_submodule(str(node.target)))
    }
    layers = policy.assign(list(types.items()), list(others.items()))
    residual = policy.residual_rule()
    outputs = residual if policy.quantize_outputs else None
    sites: list[Site] = []
    float_edges: list[str] = []
    taken = set(dir(nn.ModuleDict))  # a site called `values` would hide a method of the dict that holds it
    for node in graph.nodes:
        if not _is_real_tensor(node, operations):
            continue
        uses = [
            _Use(
                tensor,
                consumer,
                outputs
                if operations[consumer].role is Role.OUTPUT
                else _wanted_rule(node, consumer, operations, layers, residual),
            )
            for tensor, consumer in _consumers(node, operations)
        ]
        name = _unique(_site_name(node, operations), taken)
        of_layers = [use for use in uses if use.rule is not None and use.rule.quantizer_class.for_layer_inputs]
        static = [use for use in uses if use not in of_layers]
        if of_layers:
            kind = "dynamic" if any(use.rule.is_dynamic for use in of_layers if use.rule) else "quantized"
            sites += _dynamic_sites(_unique(f"{name}_{kind}", taken), of_layers)
            if not static:
                continue
        base = _base_rule(node, static, operations, residual)
        if base is not None:
            operation = operations[node]
            behind_relu = isinstance(operation, Rectify) and operation.ceiling is None
            site = Site(name, node, base, _is_signed(operation, nonnegative[node]), behind_relu)
            sites += [site, *_requantizations(site, static, operations, taken)]
        elif not _stays_float(node, operations) and any(
            operations[use.consumer].role is not Role.OUTPUT for use in static
        ):
            float_edges.append(name)
    float_edges += [f"{n.name} ({_operation(model, n)})" for n in graph.nodes if _stays_float(n, operations)]
    if policy.target is not None:
        makes_codes = {str(_head(site.node, operations).target) for site in sites}
        target_grids(policy.target).check_layers(model, {n: layers[n] for n in types if n in layers}, makes_codes)
    return Plan(layers, sites, float_edges)


def _nonnegative(operations: Operations) -> dict[fx.Node, bool]:
    """For each tensor, whether the graph alone shows that it has no negative value."""
    found: dict[fx.Node, bool] = {}
    for node, operation in operations.items():
        found[node] = operation.is_nonnegative([found[n] for n in operation.inputs])
    return found


def _is_signed(operation: Operation, nonnegative: bool) -> bool | None:
    """Whether a tensor has negative values; None: the data decide. Layers, inputs and sums nearly always have some."""
    if nonnegative:
        return False
    return None if isinstance(operation, Elementwise | Multiply | MatMul | Float) else True


def _is_real_tensor(node: fx.Node, operations: Operations) -> bool:
    """Whether the node produces new values that exist in memory: not a view, not a size, not inside a fused operation."""
    unreal = (Role.OUTPUT, Role.MOVE, Role.SIZE, Role.SITE, Role.CONSTANT, Role.PART)
    return operations[node].role not in unreal and not _is_inside_fusion(node, operations)


def _base_rule(
    node: fx.Node, uses: list[_Use], operations: Operations, residual: TensorRule | None
) -> TensorRule | None:
    """The rule of the quantizer behind `node`: the widest one wanted, or the residual rule; None if the tensor stays float."""
    wanted = [use.rule for use in uses if use.rule is not None]
    roles = {use.consumer: operations[use.consumer].role for use in uses}
    if not wanted:
        feeds_float = any(role not in (Role.OUTPUT, Role.LAYER) for role in roles.values())
        head = operations[_head(node, operations)]
        ends_sums = isinstance(head, MatMul) or (head.role is Role.LAYER and not _is_embedding(node, operations))
        return residual if ends_sums and feeds_float else None  # keeps the sums themselves in integers
    feeds_residual = any(roles[use.consumer] is not Role.LAYER for use in uses if use.rule is not None)
    return residual if feeds_residual and residual is not None else max(wanted, key=lambda rule: rule.bits)


def _requantizations(base: Site, uses: list[_Use], operations: Operations, taken: set[str]) -> list[Site]:
    """Sites behind `base` for layers that want fewer bits: one for each tensor and width."""
    lower: dict[tuple[fx.Node, int], Site] = {}
    for tensor, consumer, rule in uses:
        if rule is not None and rule.bits < base.rule.bits and operations[consumer].role is Role.LAYER:
            site = lower.setdefault((tensor, rule.bits), Site("", tensor, rule, base.signed))
            site.consumers.append(consumer)
    for (_, bits), site in lower.items():
        site.name = _unique(f"{base.name}_to_{bits}_bits", taken)
    return list(lower.values())


def _dynamic_sites(name: str, uses: Iterable[_Use]) -> list[Site]:
    """Sites with dynamic ranges: one for each tensor, shared by the layers that read it. Other consumers read floats."""
    sites: dict[tuple[fx.Node, str], Site] = {}
    for tensor, consumer, rule in uses:
        assert rule is not None
        numbered = name if not sites else f"{name}_{len(sites) + 1}"
        site = sites.setdefault((tensor, str(rule.quantizer)), Site(numbered, tensor, rule, signed=True))
        site.consumers.append(consumer)
    return list(sites.values())


def _stays_float(node: fx.Node, operations: Operations) -> bool:
    """Whether the operation stays in float: it has no description, or is a BatchNorm without a layer and without a form."""
    operation = operations[node]
    alone = operation.role is Role.NORM and not has_form_alone(operation) and not _follows_layer(node, operations)
    return operation.role is Role.FLOAT or alone


def _is_embedding(node: fx.Node, operations: Operations) -> bool:
    operation = operations[node]
    return isinstance(operation, Layer) and operation.takes_indices


def _follows_layer(norm: fx.Node, operations: Operations) -> bool:
    """Whether a BatchNorm is absorbed into the layer before it."""
    source = operations[norm].inputs[0]
    return operations[source].role is Role.LAYER and _only_user(source) is norm


def _only_user(node: fx.Node) -> fx.Node | None:
    return next(iter(node.users)) if len(node.users) == 1 else None


def _is_inside_fusion(node: fx.Node, operations: Operations) -> bool:
    """Whether the tensor exists only inside a fused operation: conv before BatchNorm, anything fused before ReLU."""
    user, operation = _only_user(node), operations[node]
    if user is None:
        return False
    if operations[user].role is Role.NORM:
        return operation.role is Role.LAYER and not _is_embedding(node, operations)
    if operations[user].role is not Role.RECTIFY or _is_embedding(node, operations):
        return False
    return operation.role in (Role.LAYER, Role.NORM) or isinstance(operation, Add | Multiply | MatMul)


def _head(node: fx.Node, operations: Operations) -> fx.Node:
    """The first node of the fused operation that ends in `node`."""
    while operations[node].role in (Role.NORM, Role.RECTIFY) and _is_inside_fusion(
        operations[node].inputs[0], operations
    ):
        node = operations[node].inputs[0]
    return node


def _consumers(node: fx.Node, operations: Operations) -> list[tuple[fx.Node, fx.Node]]:
    """(tensor, consumer) of every use, looking through operations that keep the values on their grid."""
    found: list[tuple[fx.Node, fx.Node]] = []
    pending = [(node, user) for user in node.users]
    while pending:
        tensor, user = pending.pop(0)
        operation = operations[user]
        if operation.role is Role.MOVE:
            pending[:0] = [(user, next_user) for next_user in user.users]
        elif isinstance(operation, Part):
            if (tensor, operation.end) not in found:
                found.append((tensor, operation.end))
        elif operation.role is not Role.SIZE and (tensor, user) not in found:
            found.append((tensor, user))
    return found


def _wanted_rule(
    tensor: fx.Node,
    consumer: fx.Node,
    operations: Operations,
    layers: Mapping[str, Rule],
    residual: TensorRule | None,
) -> TensorRule | None:
    """The precision in which `consumer` wants the real tensor that it reads; None if it takes floats."""
    operation = operations[consumer]
    if isinstance(operation, Layer):
        rule = layers.get(str(consumer.target))
        return rule.input_of(type(operation.module)) if rule and not operation.takes_indices else None
    if isinstance(operation, Elementwise) and operations[tensor].role in (Role.FLOAT, Role.INPUT):
        return None  # quantizing it in front as well as behind would gain nothing
    in_integers = operation.role in (Role.ARITHMETIC, Role.RECTIFY) or has_form_alone(operation)
    return residual if in_integers else None


def _site_name(node: fx.Node, operations: Operations) -> str:
    """The name of the layer that starts the fused operation (layer1_0_conv1); for an input, of its argument (x_input)."""
    if operations[node].role is Role.INPUT:
        return f"{node.target}_input"
    head = _head(node, operations)
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
