"""What forward stores on its modules: tracing must leave no proxies behind, and a graph must not lose it."""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor, fx, nn

from qat.nn import SideEffect
from qat.torch_private import tree_leaves


class NotInGraphError(Exception):
    """Forward changes an attribute in a way that a graph would do once, at capture, or never. The message names it."""


class _Value(NamedTuple):
    """value: of an attribute. contents: what was in it, if it is a list or a dict."""

    value: Any
    contents: list[Any] | None

    def is_now(self, value: Any) -> bool:
        contents = _contents(value)
        if contents is None or self.contents is None:
            return _same(value, self.value)
        return value is self.value and len(contents) == len(self.contents) and all(map(_same, contents, self.contents))

    def restored(self) -> Any:
        """The value, with its contents in place."""
        if isinstance(self.value, list) and self.contents is not None:
            self.value[:] = self.contents
        elif isinstance(self.value, dict) and self.contents is not None:
            self.value.clear()
            self.value.update(zip(self.contents[::2], self.contents[1::2], strict=True))
        return self.value


class Attributes:
    """The attributes of a model and of its submodules, at one moment."""

    def __init__(self, model: nn.Module) -> None:
        self.modules = dict(model.named_modules())
        self.before = {
            name: {key: _Value(value, _contents(value)) for key, value in vars(module).items()}
            for name, module in self.modules.items()
        }

    def stored_with_gradient(self) -> dict[str, list[Tensor]]:
        """New attributes with tensors that need a gradient, and these tensors: what forward keeps for a loss, and caches."""
        changed = {
            f"{name}.{key}".lstrip("."): value
            for name, module in self.modules.items()
            for key, value in module.__dict__.items()
            if not (key in self.before[name] and self.before[name][key].is_now(value))
            if key not in ("_parameters", "_buffers", "_modules")
        }
        found = {
            path: [leaf for leaf in tree_leaves(value) if isinstance(leaf, Tensor) and leaf.grad_fn is not None]
            for path, value in changed.items()
        }
        return {path: tensors for path, tensors in found.items() if tensors}

    def restore(self, keep_new: bool = True) -> dict[str, fx.Node]:
        """Set everything back, in place.

        Args:
            keep_new: whether attributes that were not there before stay, unless they hold proxies: what forward caches.

        Returns:
            The tensors that forward stored while it was traced: "module.attribute" -> its node.

        Raises:
            NotInGraphError: forward changed something else. Everything has been set back.
        """
        stored: dict[str, fx.Node] = {}
        lost: list[str] = []
        for name, module in self.modules.items():
            now, before = module.__dict__, self.before[name]
            for key in list(now):
                value = now[key]
                if key in before and before[key].is_now(value):
                    continue
                path = f"{name}.{key}".lstrip(".")
                if isinstance(value, fx.Proxy):
                    stored[path] = value.node
                elif key in before and _is_cache(before[key], value):
                    pass  # the graph calculates what would be in it
                elif _has_proxies(value) or (key in before and _counts(before[key], value)):
                    lost.append(path)
                if key in before:
                    now[key] = before[key].restored()
                elif _has_proxies(value) or not keep_new:
                    del now[key]
        if lost:
            raise NotInGraphError(f"forward changes {', '.join(lost)}, which a graph would not repeat")
        return stored


class Remember(SideEffect):
    """Stores what it is called with as an attribute of another module, as the forward did that it was traced from."""

    def __init__(self, owner: nn.Module, attribute: str) -> None:
        super().__init__()
        self.owner, self.attribute = (owner,), attribute  # a tuple: the owner is not a submodule

    def forward(self, value: Any) -> None:
        setattr(self.owner[0], self.attribute, value)


def _contents(value: Any) -> list[Any] | None:
    if isinstance(value, list):
        return list(value)
    return [part for item in value.items() for part in item] if isinstance(value, dict) else None


def _same(a: Any, b: Any) -> bool:
    """Whether two values are one, or numbers, texts and what contains such that are equal: torch.export rebuilds those."""
    return a is b or (type(a) is type(b) and isinstance(a, int | float | str | tuple | list | dict) and _equal(a, b))


def _equal(a: Any, b: Any) -> bool:
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(_same(value, b[key]) for key, value in a.items())
    if isinstance(a, tuple | list):
        return len(a) == len(b) and all(map(_same, a, b))
    return bool(a == b)


def _has_proxies(value: Any) -> bool:
    return any(isinstance(leaf, fx.Proxy) for leaf in tree_leaves(value))


def _is_cache(before: _Value, value: Any) -> bool:
    """Whether forward only added something to a dict that depends on parameters alone."""
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


def _counts(before: _Value, value: Any) -> bool:
    """Whether forward changes this attribute in every call, as a counter or a growing list; a cache is filled only once."""
    if isinstance(value, list):
        return not _same(value, before.contents)
    if isinstance(value, dict):
        kept = dict(zip(before.contents[::2], before.contents[1::2], strict=True)) if before.contents else {}
        return any(key not in value or not _same(value[key], old) for key, old in kept.items())
    return isinstance(value, int | float | Tensor) and before.value is not None
