"""The quantized layers of a prepared network: their weights, their multiply-adds, and the quantizers that they read."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase

from torch import fx, nn

from qat.capture import installed_graph
from qat.nn import is_quantized, parameters_of_weight, quantized_weights
from qat.operations import Operations, Role, describe_graph
from qat.quantizers import Quantizer
from qat.transform.record import record_of
from qat.transform.rule import Rule

POSITIONS = ("first", "last")
"""Matches of rules that are not names of layers."""


@dataclass(frozen=True)
class Layer:
    """A module with quantized weights, or a quantized input.

    Attributes:
        name: of the module.
        rule: the rule of the policy for it.
        elements: of its quantized weights; 0 if they stay in float.
        multiply_adds: of one forward on the example inputs.
        weights: the quantizers of its weights.
        inputs: the quantizers of its inputs, by name.
        stored: the identities of its stored weights, by which layers that share one are found.
    """

    name: str
    rule: Rule
    elements: int
    multiply_adds: int
    weights: tuple[Quantizer, ...]
    inputs: Mapping[str, Quantizer]
    stored: frozenset[int]


def find_layers(prepared: nn.Module) -> list[Layer]:
    """The layers of a prepared network that have a rule, in the order in which they run."""
    record = record_of(prepared)
    assert record is not None
    calls_of = _calls(prepared)
    found = []
    for name, rule in record.rules.items():
        module = prepared.get_submodule(name)
        weights = quantized_weights(module)
        calls = calls_of.get(name, [])
        inputs = {key: q for call in calls for key, q in call.sites.items()}
        if not calls and isinstance(own := getattr(module, "input_quantizer", None), Quantizer):
            inputs[f"{name}.input_quantizer"] = own
        stored = parameters_of_weight(module) if is_quantized(module) else [w.weight for w in weights]
        found.append(
            Layer(
                name, rule,
                elements=sum(w.weight.numel() for w in weights),
                multiply_adds=sum(record.multiply_adds.get(call.node, 0) for call in calls),
                weights=tuple(w.quantizer for w in weights),
                inputs=inputs,
                stored=frozenset(map(id, stored)) if weights else frozenset(),
            )
        )  # fmt: skip
    return found


def is_kept(layer: Layer, keep: Iterable[str]) -> bool:
    """Whether the layer keeps the bits of the policy: `keep` has the match of its rule ("first"), or a glob on its name."""
    return any(
        layer.rule.match == pattern or (pattern not in POSITIONS and fnmatchcase(layer.name, pattern))
        for pattern in keep
    )


@dataclass(frozen=True)
class _Call:
    """One call of a layer: the name of its node, and the quantizers that it reads."""

    node: str
    sites: Mapping[str, Quantizer]


def _calls(prepared: nn.Module) -> dict[str, list[_Call]]:
    """The calls of each module in the graph; none if there is no graph."""
    installed = installed_graph(prepared)
    if installed is None:
        return {}
    operations = describe_graph(prepared, installed[0])
    found: dict[str, list[_Call]] = {}
    for node in installed[0].nodes:
        if node.op == "call_module" and operations[node].role is not Role.SITE:
            sites = [_site(source, operations) for source in operations[node].inputs[:1]]
            named = {str(s.target): prepared.get_submodule(str(s.target)) for s in sites if s is not None}
            quantizers = {name: q for name, q in named.items() if isinstance(q, Quantizer)}
            found.setdefault(str(node.target), []).append(_Call(node.name, quantizers))
    return found


def _site(node: fx.Node, operations: Operations) -> fx.Node | None:
    """The quantizer whose grid the values of a tensor lie on."""
    while operations[node].role is Role.MOVE and operations[node].inputs:
        node = operations[node].inputs[0]
    return node if operations[node].role is Role.SITE else None
