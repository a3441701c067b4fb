"""Hooks that change what a module takes or returns: they become operations of the graph, and are removed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from torch import Tensor, fx, nn

from qat.capture.graphs.in_place import works_in_place
from qat.torch_private import hooks_of, tensor_version, tree_leaves


class WatchedHook:
    """A hook that notes whether it changes what it sees. Those of torch, which compute weights, are not watched.

    Attributes:
        changes: whether it returned something, or overwrote a tensor.
        silent: whether its calls do nothing.
    """

    def __init__(self, hook: Callable[..., Any]) -> None:
        self.hook, self.changes, self.silent = hook, False, False

    def __call__(self, *arguments: Any) -> Any:
        if self.silent:
            return None
        tensors = [x for x in tree_leaves(arguments) if isinstance(x, Tensor)]
        versions = [tensor_version(x) for x in tensors]
        result = self.hook(*arguments)
        self.changes |= result is not None or versions != [tensor_version(x) for x in tensors]
        return result


class _Place(NamedTuple):
    """Where a hook was registered."""

    module: nn.Module
    hooks: dict[int, Any]
    number: int
    watched: WatchedHook


@contextmanager
def watched_hooks(model: nn.Module) -> Iterator[list[_Place]]:
    """Inside the `with`, the hooks of all modules note whether they change something."""
    places = [
        _Place(module, hooks, number, WatchedHook(hook))
        for module in model.modules()
        for hooks in hooks_of(module)[:2]
        for number, hook in hooks.items()
        if not _module_of(hook).startswith("torch.")
    ]
    for place in places:
        place.hooks[place.number] = place.watched
    try:
        yield places
    finally:
        for place in places:
            if place.number in place.hooks:
                place.hooks[place.number] = place.watched.hook


@contextmanager
def without_traced_hooks(model: nn.Module) -> Iterator[None]:
    """Inside the `with`, watched hooks that change something do not run: the graph computes it."""
    hooks = [h for module in model.modules() for found in hooks_of(module)[:2] for h in found.values()]
    changing = [hook for hook in hooks if isinstance(hook, WatchedHook) and hook.changes]
    for hook in changing:
        hook.silent = True
    try:
        yield
    finally:
        for hook in changing:
            hook.silent = False


def drop_traced_hooks(model: nn.Module, graph: fx.Graph, places: list[_Place]) -> bool:
    """Remove the hooks that change something from the model and the modules that the graph calls, in place.

    The graph computes what they did.

    Returns:
        Whether there were any.
    """
    called = {model, *(model.get_submodule(str(n.target)) for n in graph.nodes if n.op == "call_module")}
    dropped = [place for place in places if place.watched.changes and place.module in called]
    for place in dropped:
        del place.hooks[place.number]
    return bool(dropped)


def call_with_hooks(module: nn.Module, call: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Trace `call`, which is the forward of `module`, with its hooks before and after."""
    before, after, with_kwargs = hooks_of(module)
    for number, hook in before.items():
        given = (args, kwargs) if number in with_kwargs else (args,)
        changed = _traced_hook(hook, module, *given)
        if changed is not None and number in with_kwargs:
            args, kwargs = changed
        elif changed is not None:
            args = changed if isinstance(changed, tuple) else (changed,)
    result = call(args, kwargs)
    for number, hook in after.items():
        given = (args, kwargs) if number in with_kwargs else (args,)
        changed = _traced_hook(hook, module, *given, result)
        result = result if changed is None else changed
    return result


def _traced_hook(hook: Any, *arguments: Any) -> Any:
    """What a watched hook returns for proxies. Nodes of a hook that changes nothing are removed from the graph."""
    proxy: Any = next((x for x in tree_leaves(arguments) if isinstance(x, fx.Proxy)), None)
    if not isinstance(hook, WatchedHook) or proxy is None:
        return None
    graph = proxy.node.graph
    known = set(graph.nodes)
    try:
        result = hook(*arguments)
    except Exception:  # it reads values, to collect statistics for example
        result = None
    if result is None:
        made = [node for node in graph.nodes if node not in known]
        if any(node.all_input_nodes and works_in_place(proxy.tracer.root, node) for node in made):
            hook.changes = True
        else:
            for node in reversed(made):
                graph.erase_node(node)
    return result


def _module_of(hook: Any) -> str:
    return str(getattr(hook, "__module__", None) or type(hook).__module__)
