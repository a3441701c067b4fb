"""Functions of one tensor that are written as several operations: x * sigmoid(x), x * relu6(x + 3) / 6, tanh-GELU by hand.

On codes, such a region is one table. `merge_regions` describes its last node as one `Elementwise` of the tensor that it starts
from, and the nodes before as `Part`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import fx

from qat.operations.activations import Elementwise, Rectify
from qat.operations.arithmetic import Add, Multiply
from qat.operations.base import Float, Operation, Role


@dataclass(frozen=True)
class Part(Operation):
    """An operation inside a region. end: the last node of the region."""

    end: fx.Node
    role: ClassVar[Role] = Role.PART


@dataclass(frozen=True)
class Region(Elementwise):
    """A function of one tensor. nodes: its operations, in order, the last one included."""

    nodes: tuple[fx.Node, ...] = ()


def merge_regions(found: Mapping[fx.Node, Operation]) -> dict[fx.Node, Operation]:
    """The descriptions, with one `Region` for every function of one tensor that several operations compute."""
    roots = _roots(found)
    merged = dict(found)
    for node in found:
        if node not in roots or all(roots.get(user) is roots[node] for user in node.users):
            continue
        nodes = _between(roots, node)
        if len(nodes) == 1 or any(set(n.users) - set(nodes) for n in nodes[:-1]):
            continue
        sign = _sign(found, roots[node], nodes)
        merged[node] = Region((roots[node],), "+".join(n.name for n in nodes), sign, tuple(nodes))
        for part in nodes[:-1]:
            merged[part] = Part(found[part].inputs, node)
    return merged


def _roots(found: Mapping[fx.Node, Operation]) -> dict[fx.Node, fx.Node]:
    """For each node that is a function of one tensor, value by value: that tensor."""
    roots: dict[fx.Node, fx.Node] = {}
    for node, operation in found.items():
        sources = {roots.get(n, n) for n in operation.inputs}
        if len(sources) != 1 or not set(node.all_input_nodes) <= set(operation.inputs):
            continue  # several tensors, or a size takes part
        starts = isinstance(operation, Elementwise | Multiply | Add)
        goes_on = isinstance(operation, Rectify) and operation.inputs[0] in roots
        two_of_one = isinstance(operation, Float) and operation.elementwise and len(operation.inputs) == 2
        if starts or goes_on or two_of_one:
            roots[node] = sources.pop()
    return roots


def _between(roots: Mapping[fx.Node, fx.Node], end: fx.Node) -> list[fx.Node]:
    """The nodes that compute `end` from its root, in graph order."""
    found, stack = {end}, [end]
    while stack:
        for source in stack.pop().all_input_nodes:
            if source in roots and roots[source] is roots[end] and source not in found:
                found.add(source)
                stack.append(source)
    return sorted(found)


def _sign(found: Mapping[fx.Node, Operation], root: fx.Node, nodes: list[fx.Node]) -> bool | None:
    """`Elementwise.nonnegative` of the whole region."""
    results = []
    for root_is_nonnegative in (False, True):
        known = {root: root_is_nonnegative}
        for node in nodes:
            known[node] = found[node].is_nonnegative([known[n] for n in found[node].inputs])
        results.append(known[nodes[-1]])
    return True if results[0] else None if results[1] else False
