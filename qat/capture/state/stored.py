"""What forward stores on its modules while it is traced, and how a graph stores the same."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

from torch import fx, nn

from qat.capture.state.snapshot import Snapshot, replace_contents
from qat.nn import SideEffect
from qat.torch_private import tree_leaves, tree_map

Way = Literal["set", "update", "replace", "extend"]
"""How an attribute gets its value: it is set, or its contents change: some keys, all of them, or more at the end."""


class Stored(NamedTuple):
    """A value that forward stores. value: has nodes in place of tensors."""

    way: Way
    value: Any

    @property
    def nodes(self) -> list[fx.Node]:
        """Its tensors."""
        return [leaf for leaf in tree_leaves(self.value) if isinstance(leaf, fx.Node)]

    def with_nodes(self, others: Mapping[fx.Node, fx.Node]) -> Stored:
        """The same with other nodes in the place of its own."""
        return Stored(self.way, tree_map(lambda leaf: others[leaf] if isinstance(leaf, fx.Node) else leaf, self.value))


class Remember(SideEffect):
    """Stores its argument as an attribute of another module, as the traced forward did."""

    def __init__(self, owner: nn.Module, attribute: str, way: Way = "set") -> None:
        super().__init__()
        self.owner, self.attribute, self.way = (owner,), attribute, way  # a tuple: the owner is not a submodule

    def forward(self, value: Any) -> None:
        if self.way == "set":
            setattr(self.owner[0], self.attribute, value)
            return
        container = getattr(self.owner[0], self.attribute)
        if self.way == "replace":
            replace_contents(container, value)
        else:
            container.update(value) if self.way == "update" else container.extend(value)


class Marker:
    """Put into a list while forward is traced, to see whether forward empties the list."""


def stored_value(before: Snapshot | None, value: Any) -> Stored | None:
    """How a graph stores what an attribute holds after tracing; None if it cannot.

    before: the attribute before, whose lists and deques had a `Marker` in them; None: there was no such attribute.
    """
    if before is None or value is not before.value:
        return _stored("set", value)
    if isinstance(value, dict):
        kept = dict(zip(before.contents()[::2], before.contents()[1::2], strict=True))
        if any(key not in value or (value[key] is old and has_proxies(old)) for key, old in kept.items()):
            return None
        return _stored("update", {key: x for key, x in value.items() if key not in kept or x is not kept[key]})
    if isinstance(value, list | deque):
        items = list(value)
        marked = [i for i, item in enumerate(items) if isinstance(item, Marker)]
        return _stored("extend" if marked else "replace", items[marked[-1] + 1 :] if marked else items)
    return None


def remember(model: nn.Module, graph: fx.Graph, stored: Mapping[str, Stored]) -> None:
    """Let the graph store what forward stores on its modules, in place."""
    output, number = next(iter(reversed(graph.nodes))), 0
    for path, (way, value) in stored.items():
        owner, _, attribute = path.rpartition(".")
        while hasattr(model, name := f"remembered_{number}"):
            number += 1
        model.add_module(name, Remember(model.get_submodule(owner), attribute, way))
        with graph.inserting_before(output):
            graph.call_module(name, (value,))


def has_proxies(value: Any) -> bool:
    """Whether nested values hold a proxy of tracing."""
    return any(isinstance(leaf, fx.Proxy) for leaf in tree_leaves(value))


def _stored(way: Way, value: Any) -> Stored | None:
    plain = all(isinstance(leaf, fx.Proxy | int | float | str | None) for leaf in tree_leaves(value))
    if not plain or not _is_nested_plainly(value):
        return None
    return Stored(way, tree_map(lambda leaf: leaf.node if isinstance(leaf, fx.Proxy) else leaf, value))


def _is_nested_plainly(value: Any) -> bool:
    """Whether all containers are of the classes that a graph can write."""
    if type(value) is dict:
        return all(type(key) in (str, int) for key in value) and all(map(_is_nested_plainly, value.values()))
    if type(value) in (list, tuple):
        return all(map(_is_nested_plainly, value))
    return isinstance(value, fx.Proxy | int | float | str | None)
