"""The attributes of modules before and after a forward.

Tracing must leave no proxies behind, and a graph must store what forward stores.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import Any

from torch import Tensor, fx, nn

from qat.capture.state.snapshot import Snapshot, replace_contents, same
from qat.capture.state.stored import Marker, Stored, has_proxies, stored_value
from qat.torch_private import tree_leaves


class NotInGraphError(Exception):
    """Forward changes attributes in a way that a graph would do once, at capture, or never. The message names them."""

    def __init__(self, names: list[str]) -> None:
        super().__init__(f"forward changes {', '.join(names)}, which a graph would not repeat")
        self.names = names


class Attributes:
    """The attributes of a model and of its submodules, at one moment."""

    def __init__(self, model: nn.Module) -> None:
        self.modules = dict(model.named_modules())
        self.before = {
            name: {key: Snapshot(value) for key, value in vars(module).items()} for name, module in self.modules.items()
        }

    def changed(self) -> Iterator[tuple[str, dict[str, Any], str, Snapshot | None]]:
        """(path, attributes of the module, key, value before) of every attribute that has changed."""
        for name, module in self.modules.items():
            now, before = module.__dict__, self.before[name]
            for key in list(now):
                if key not in before or not before[key].is_now(now[key]):
                    yield f"{name}.{key}".lstrip("."), now, key, before.get(key)

    def stored_with_gradient(self) -> dict[str, list[Tensor]]:
        """New attributes with tensors that need a gradient, and these tensors: what forward keeps for a loss, and caches."""
        found = {
            path: [leaf for leaf in tree_leaves(now[key]) if isinstance(leaf, Tensor) and leaf.grad_fn is not None]
            for path, now, key, _ in self.changed()
            if key not in ("_parameters", "_buffers", "_modules")
        }
        return {path: tensors for path, tensors in found.items() if tensors}

    def restore(self, keep_new: bool = True) -> dict[str, Stored]:
        """Restore all attributes, in place.

        Args:
            keep_new: whether new attributes stay, unless they hold proxies: forward's caches.

        Returns:
            What forward stored while it was traced: "module.attribute" -> its value.

        Raises:
            NotInGraphError: forward changed something else. Everything has been restored.
        """
        stored: dict[str, Stored] = {}
        lost: list[str] = []
        for path, now, key, before in self.changed():
            value = now[key]
            if before is not None and _is_cache(before, value):
                pass  # the graph calculates its values itself
            elif has_proxies(value):
                found = stored_value(before, value)
                if found is None:
                    lost.append(path)
                else:
                    stored[path] = found
            elif before is not None and _counts(before, value):
                lost.append(path)
            if before is not None:
                now[key] = before.restored()
            elif has_proxies(value) or not keep_new:
                del now[key]
        if lost:
            raise NotInGraphError(lost)
        return stored

    def filled_lists(self) -> list[str]:
        """Names of the lists and deques that tracing filled in place."""
        return [
            path
            for path, now, key, before in self.changed()
            if before is not None
            and isinstance(now[key], list | deque)
            and now[key] is before.value
            and has_proxies(now[key])
        ]

    def mark(self, paths: list[str]) -> None:
        """Replace the contents of these lists by a `Marker`."""
        for path in paths:
            owner, _, key = path.rpartition(".")
            replace_contents(vars(self.modules[owner])[key], [Marker()])

    def filled_with_numbers(self) -> list[str]:
        """Names of changed attributes without proxies: caches and counters."""
        return [path for path, now, key, _ in self.changed() if not has_proxies(now[key])]

    def growing(self, paths: list[str]) -> list[str]:
        """Those of these attributes that hold other numbers now, or another number of values."""
        now = {path: value for path, attributes, key, _ in self.changed() for value in [attributes[key]]}
        return [path for path in paths if path in now and self._at(path).grows(now[path])]

    def _at(self, path: str) -> Snapshot:
        owner, _, key = path.rpartition(".")
        return self.before[owner][key]


def _is_cache(before: Snapshot, value: Any) -> bool:
    """Whether forward only added values to a dict that depend on parameters alone."""
    if not isinstance(value, dict) or value is not before.value or _counts(before, value):
        return False
    todo = [leaf.node for leaf in tree_leaves(value) if isinstance(leaf, fx.Proxy)]
    seen: set[fx.Node] = set()
    while todo:
        node = todo.pop()
        if node.op == "placeholder":
            return False
        todo += [n for n in node.all_input_nodes if n not in seen]
        seen.add(node)
    return bool(seen)


def _counts(before: Snapshot, value: Any) -> bool:
    """Whether forward changes this attribute in every call, as a counter or a growing list; a cache is filled only once."""
    if isinstance(value, list | deque | set):
        return not before.is_now(value, identical=False)
    if isinstance(value, dict):
        contents = before.contents()
        kept = dict(zip(contents[::2], contents[1::2], strict=True))
        return any(key not in value or not same(value[key], old) for key, old in kept.items())
    return isinstance(value, int | float | Tensor) and before.value is not None
