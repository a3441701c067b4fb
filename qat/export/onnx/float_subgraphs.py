"""Float subgraphs: maximal connected groups of operations, each written by torch.onnx as one module. Equal ones share a key."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from typing import Any

import torch
from torch import Tensor, fx, nn

from qat.export.onnx.example_outputs import ExampleOutputs, tensors_in
from qat.integer.weight_only import WeightOnlyLayer
from qat.operations.call import operation_name
from qat.torch_private import tree_map_only

SIMPLE = (bool, int, float, str, bytes, type(None), torch.dtype, torch.device)
"""Types of attributes whose repr says all about their value."""


@dataclass(frozen=True)
class FloatSubgraph:
    """Operations that are exported together.

    Attributes:
        nodes: in the order of the graph, with the sizes that they read.
        sources: nodes outside whose tensors they read.
        results: nodes whose tensors are read outside.
    """

    nodes: tuple[fx.Node, ...]
    sources: tuple[fx.Node, ...]
    results: tuple[fx.Node, ...]


def find_float_subgraphs(
    graph: fx.Graph,
    members: Collection[fx.Node],
    has_tensors: Callable[[fx.Node], bool],
    is_needed: Callable[[fx.Node], bool],
) -> list[FloatSubgraph]:
    """Group `members` into subgraphs.

    Args:
        graph: the graph.
        members: the operations that torch.onnx is to write.
        has_tensors: whether a node returns tensors; others are sizes, which every subgraph computes for itself.
        is_needed: whether a node must be a result even if nothing outside reads it.
    """
    sources, sizes = _read_by(graph.nodes if len(members) > 1 else members, has_tensors)
    groups = _connected(members, sources, dict.fromkeys(members, 0))
    if len(members) > 1 and _reads_itself(groups, sources):
        groups = _connected(members, sources, _depths(members, sources))
    order = {node: i for i, node in enumerate(graph.nodes)}
    subgraphs = []
    for group in groups.all():
        inside = set(group)
        outside = {s for n in group for s in sources[n]} - inside
        everything = inside | {s for n in group for s in sizes[n]}
        results = [n for n in group if is_needed(n) or _is_read_outside(n, inside, has_tensors)]
        ordered = (tuple(sorted(some, key=order.__getitem__)) for some in (everything, outside, results))
        subgraphs.append(FloatSubgraph(*ordered))
    return subgraphs


def _connected(
    members: Collection[fx.Node], sources: Mapping[fx.Node, set[fx.Node]], depths: Mapping[fx.Node, int]
) -> _Groups:
    """Members that read each other and have one depth, as groups."""
    groups = _Groups(members)
    for node in members:
        for source in sources[node]:
            if source in groups.parents and depths[source] == depths[node]:
                groups.join(node, source)
    return groups


def _reads_itself(groups: _Groups, sources: Mapping[fx.Node, set[fx.Node]]) -> bool:
    """Whether a group reads, through operations outside, what it computes, as with rotary positions that all layers share."""
    sorter: TopologicalSorter[fx.Node] = TopologicalSorter()
    for node, read in sources.items():
        own, *others = (groups.root(n) if n in groups.parents else n for n in (node, *read))
        sorter.add(own, *(other for other in others if other is not own))
    try:
        sorter.prepare()
    except CycleError:
        return True
    return False


def _depths(members: Collection[fx.Node], sources: Mapping[fx.Node, set[fx.Node]]) -> dict[fx.Node, int]:
    """How often the paths to a node leave the members and enter them again, at most; -1 before the first member."""
    inside, depths = set(members), dict[fx.Node, int]()
    for node, read in sources.items():  # in graph order
        entered = [depths.get(s, -1) + (node in inside and s not in inside) for s in read]
        depths[node] = max([0 if node in inside else -1, *entered])
    return depths


def _is_read_outside(node: fx.Node, inside: Collection[fx.Node], has_tensors: Callable[[fx.Node], bool]) -> bool:
    return any(user not in inside and (user.op == "output" or has_tensors(user)) for user in node.users)


def _read_by(
    members: Iterable[fx.Node], has_tensors: Callable[[fx.Node], bool]
) -> tuple[dict[fx.Node, set[fx.Node]], dict[fx.Node, set[fx.Node]]]:
    """For every node: the tensors and the sizes that it reads, also those that the sizes are computed from."""
    sources: dict[fx.Node, set[fx.Node]] = {}
    sizes: dict[fx.Node, set[fx.Node]] = {}
    for node in members:
        sources[node], sizes[node] = set(), set()
        waiting = list(node.all_input_nodes)
        while waiting:
            current = waiting.pop()
            if has_tensors(current):
                sources[node].add(current)
            elif current not in sizes[node]:
                sizes[node].add(current)
                waiting += current.all_input_nodes
    return sources, sizes


class _Groups:
    """Disjoint sets."""

    def __init__(self, members: Iterable[fx.Node]) -> None:
        self.parents = {node: node for node in members}

    def root(self, node: fx.Node) -> fx.Node:
        while self.parents[node] is not node:
            self.parents[node] = self.parents[self.parents[node]]
            node = self.parents[node]
        return node

    def join(self, a: fx.Node, b: fx.Node) -> None:
        self.parents[self.root(a)] = self.root(b)

    def all(self) -> list[list[fx.Node]]:
        groups: dict[fx.Node, list[fx.Node]] = {}
        for node in self.parents:
            groups.setdefault(self.root(node), []).append(node)
        return list(groups.values())


def as_module(model: fx.GraphModule, subgraph: FloatSubgraph, names: Mapping[fx.Node, Any]) -> fx.GraphModule:
    """A module of the subgraph. It takes the tensors of its sources one by one, and returns a list, one element a result.

    Args:
        model: the model.
        subgraph: some of its operations.
        names: node -> the names of its tensors, nested as its output is.
    """
    graph, number = fx.Graph(), itertools.count()
    copies: dict[fx.Node, Any] = {
        source: tree_map_only(str, lambda _: graph.placeholder(f"given_{next(number)}"), names[source])
        for source in subgraph.sources
    }
    for old in subgraph.nodes:
        arguments = fx.map_arg(_of_one_type(old), copies.__getitem__)
        copies[old] = graph.create_node(old.op, old.target, *arguments)
    graph.output([copies[result] for result in subgraph.results])
    return fx.GraphModule(model, graph).eval()


def _of_one_type(node: fx.Node) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments of a node. Of clamp(0.1, 1), torch.onnx writes a bound of each type, which no runtime takes."""
    args, kwargs = node.args, dict(node.kwargs)
    if operation_name(node) in ("clamp", "clip") and any(isinstance(a, float) for a in (*args, *kwargs.values())):
        args = tuple(float(a) if isinstance(a, int) else a for a in args)
        kwargs = {name: float(a) if isinstance(a, int) else a for name, a in kwargs.items()}
    return args, kwargs


def key_of(
    model: fx.GraphModule, subgraph: FloatSubgraph, sizes: tuple[ExampleOutputs, ExampleOutputs]
) -> tuple[str, ...]:
    """Float subgraphs with equal keys compute the same function of their sources, parameters and buffers."""
    numbers = {node: i for i, node in enumerate((*subgraph.sources, *subgraph.nodes))}
    targets: dict[str, int] = {}
    operations = []
    for node in subgraph.nodes:
        target: Any = node.target
        if node.op == "call_module":
            first = targets.setdefault(str(target), len(targets))
            target = (first, _key_of_module(model.get_submodule(str(target))))
        arguments = fx.map_arg((node.args, node.kwargs), lambda n: _Number(numbers[n]))
        operations.append((node.op, target, repr(arguments)))
    shapes = [[(x.shape, x.dtype) for x in tensors_in(size[s])] for s in subgraph.sources for size in sizes]
    return str(shapes), str([numbers[n] for n in subgraph.results]), str(operations)


class _Number(int):
    """The number of a node, which no text of a number in the arguments equals."""

    def __repr__(self) -> str:
        return f"%{int(self)}"


def _key_of_module(module: nn.Module) -> tuple[Any, ...]:
    """What a module computes, apart from the numbers in its parameters and buffers."""
    return tuple(
        (
            name,
            type(part),
            id(part) if isinstance(part, nn.RNNBase) else 0,  # its weights are constants of the export
            [(k, _text(v)) for k, v in vars(part).items() if k not in ("_parameters", "_buffers", "_modules")],
            [(n, x.shape, x.dtype) for n, x in _tensors_of(part, recurse=False)],
        )
        for name, part in module.named_modules()
    )


def _text(value: Any) -> str:
    """A text that is equal for equal values; for objects of unknown types, only for the same one."""
    if isinstance(value, tuple | list):
        return f"{type(value).__name__}({', '.join(map(_text, value))})"
    if isinstance(value, SIMPLE):
        return repr(value)
    return "" if isinstance(value, dict | set) and not value else str(id(value))


def _tensors_of(module: nn.Module, recurse: bool = True) -> list[tuple[str, Tensor]]:
    return [*module.named_parameters(recurse=recurse), *module.named_buffers(recurse=recurse)]


def weights_of(module: fx.GraphModule) -> dict[str, Tensor]:
    """The parameters and buffers of a subgraph's module by name, in the order in which the subgraph calls their owners.

    Those of recurrent layers are left out: they keep a second list of their weights. So are those that nothing reads: the
    float weight of a layer whose weight is stored as codes.
    """
    weights: dict[str, Tensor] = {}
    for node in module.graph.nodes:
        if node.op == "call_module":
            called = module.get_submodule(str(node.target))
            if not any(isinstance(part, nn.RNNBase) for part in called.modules()):
                own = "layer.weight" if isinstance(called, WeightOnlyLayer) else ""
                weights |= {f"{node.target}.{name}": x.detach() for name, x in _tensors_of(called) if name != own}
    return weights


def hash_of_constants(module: fx.GraphModule, inputs: Collection[str]) -> bytes:
    """A hash of the numbers of a subgraph's module, but for those of these names."""
    digest = hashlib.sha256()
    for name, tensor in _tensors_of(module):
        if name not in inputs:
            digest.update(f"{name.count('.')} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.digest()
