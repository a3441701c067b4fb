"""How much of a prepared model is integer, and what keeps the rest in float."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor, fx, nn

from qat.capture import installed_graph
from qat.granularity import PerGroup
from qat.nn import as_quantized, is_layer, is_quantized, parameters_of_weight, quantized_weights
from qat.operations import (
    Layer,
    MatMul,
    Operations,
    can_take_codes,
    describe_graph,
    is_computed_on_codes,
    tensors_with_codes,
    without_labels,
)
from qat.quantizers import ScaledFloat
from qat.transform.policy import Policy
from qat.transform.record import PreparedRecord

ENOUGH = 0.9
"""A smaller share of multiply-adds in integers earns a warning."""
NAMED = 3
"""How many of the operations that stay in float are named."""


@dataclass(frozen=True)
class IntegerShare:
    """How much of a prepared model is integer in its artefact.

    Attributes:
        weights: share of the elements of all weight matrices that are stored as codes.
        multiply_adds: share of the multiply-adds of one forward that multiply integers; None: the model has not been run yet.
        warning: a sentence, if the policy promises integers and less than `ENOUGH` of the multiply-adds are; otherwise "".
    """

    weights: float
    multiply_adds: float | None
    warning: str = ""

    def __str__(self) -> str:
        products = "not counted yet (calibrate, or prepare with example inputs)"
        if self.multiply_adds is not None:
            products = f"{self.multiply_adds:.1%} of multiply-adds"
        return f"in integers: {self.weights:.1%} of weights, {products}"


def integer_share(model: nn.Module, record: PreparedRecord | None) -> IntegerShare:
    """The shares of a model. record: what `prepare` left on it; None: it is not prepared."""
    weights = _share_of_weights(model)
    if record is None or not record.multiply_adds:
        return IntegerShare(weights, None)
    total = sum(record.multiply_adds.values())
    in_float = multiply_adds_in_float(model, record)
    share = 1 - sum(in_float.values()) / total
    inputs = [rule.activation for rule in record.policy.rules.values() if rule.activation is not None]
    promised = any(not issubclass(rule.quantizer_class, ScaledFloat) for rule in inputs)
    return IntegerShare(weights, share, _warning(share, in_float, total) if promised and share < ENOUGH else "")


def multiply_adds_in_float(model: nn.Module, record: PreparedRecord) -> dict[str, int]:
    """Operations that compute in float, as "name (why: line of policy that mends it)" -> their multiply-adds."""
    installed = installed_graph(model)
    if installed is None:
        return {f"everything ({record.reason})": sum(record.multiply_adds.values())}
    return _in_float(model, installed[0], record)


def parameters_of_artefact(model: nn.Module) -> set[int]:
    """The ids of the parameters that the artefact is made of.

    Heads that only training runs, losses of labels, and layers that forward does not call are not part of it.
    """
    installed = installed_graph(model)
    if installed is None:
        return {id(p) for p in model.parameters()}
    graph, found = without_labels(installed[0]) or installed[0], dict(model.named_parameters(remove_duplicate=False))
    read: list[Tensor] = [found[str(n.target)] for n in graph.nodes if n.op == "get_attr" and n.target in found]
    for module in (model.get_submodule(str(n.target)) for n in graph.nodes if n.op == "call_module"):
        read += module.parameters()
        for part in module.modules():
            if is_layer(part) or is_quantized(part):
                read += parameters_of_weight(part)  # which a layer may borrow
    return {id(p) for p in read}


def _share_of_weights(model: nn.Module) -> float:
    """The share of the elements of weight matrices that are stored as codes; tied and borrowed weights count once."""
    in_artefact = parameters_of_artefact(model)
    stored = {
        id(parameter): parameter.numel()
        for module in model.modules()
        for _, weight, _ in quantized_weights(module)
        for parameter in (parameters_of_weight(module) if is_quantized(module) else [weight])
        if parameter.ndim > 1
    }
    matrices = [p for name, p in model.named_parameters() if p.ndim > 1 and "quantizer" not in name]
    total = {id(p): p.numel() for p in matrices if id(p) in in_artefact}
    return sum(n for key, n in stored.items() if key in total) / sum(total.values()) if total else 0.0


def _in_float(model: nn.Module, graph: fx.Graph, record: PreparedRecord) -> dict[str, int]:
    """Operations that compute in float, with the reason -> their multiply-adds."""
    operations = describe_graph(model, graph)
    with_codes = tensors_with_codes(model, operations)
    found: dict[str, int] = {}
    for node in graph.nodes:
        count = record.multiply_adds.get(node.name, 0)
        if count and not is_computed_on_codes(model, node, operations, with_codes):
            text = f"{node.target if node.op == 'call_module' else node.name} ({_why(model, node, operations, record)})"
            found[text] = found.get(text, 0) + count
    return found


def _why(model: nn.Module, node: fx.Node, operations: Operations, record: PreparedRecord) -> str:
    """What keeps the operation in float, and the line of policy that mends it, if one does."""
    operation, policy = operations[node], record.policy
    if isinstance(operation, MatMul):
        return _why_product(policy)
    if not isinstance(operation, Layer):
        kind = type(model.get_submodule(str(node.target))).__name__ if node.op == "call_module" else "it"
        return f"{kind} has no integer form"
    layer = operation.module
    if not can_take_codes(layer):
        return f"a {type(layer).__name__} with these options has no integer form"
    bits = _bits(policy)
    if not is_quantized(layer):
        return f"no rule: rules: {{more: {{match: {node.target}, {bits}}}}}"
    return _why_layer(layer, str(node.target), bits)


def _why_layer(layer: nn.Module, name: str, bits: str) -> str:
    quantizer = as_quantized(layer).weight_quantizer
    if quantizer is None:
        return f"its weight has no rule: rules: {{more: {{match: {name}, {bits}}}}}"
    if isinstance(quantizer, ScaledFloat):
        return f"weights in {quantizer.format_name}: weight: {{bits: 8}}"
    if isinstance(quantizer.spec.granularity, PerGroup):
        return "weights per group: weight: {granularity: per_channel}"
    return f"its input has no rule: rules: {{more: {{match: {name}, {bits}}}}}"


def _why_product(policy: Policy) -> str:
    if policy.residual_rule() is None:
        bits = next((r.weight.bits for r in policy.rules.values() if r.weight is not None), 8)
        return f"products of two activations need static ranges: preset: w{bits}a8"
    return "a product of two activations with one that has no quantizer"


def _bits(policy: Policy) -> str:
    """The bits of the policy's first rule, as they are written in a rule."""
    rule = next(iter(policy.rules.values()))
    weight, activation = (8 if t is None else t.bits for t in (rule.weight, rule.activation))
    return f"weight: {{bits: {weight}}}, activation: {{bits: {activation}}}"


def _warning(share: float, in_float: Mapping[str, int], total: int) -> str:
    largest = sorted(in_float, key=lambda text: -in_float[text])
    named = ", ".join(f"{in_float[text] / total:.0%} {text}" for text in largest[:NAMED])
    more = f" and {len(largest) - NAMED} more" if len(largest) > NAMED else ""
    return f"only {share:.0%} of the multiply-adds are in integers; in float stay {named}{more}."
