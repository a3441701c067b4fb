"""Functions with a gradient of their own (`torch.autograd.Function`): nodes of torch.fx, and what torch.export would lose."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import fx
from torch.autograd import Function

from qat.torch_private import tree_leaves


class Applied:
    """A function as the target of a node, which needs a name and a module.

    Args:
        function: the class that is applied.
    """

    def __init__(self, function: type[Function]) -> None:
        self.function = function
        self.__name__, self.__qualname__, self.__module__ = (
            function.__name__,
            function.__qualname__,
            function.__module__,
        )

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.function.apply(*args, **kwargs)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Applied) and other.function is self.function

    def __repr__(self) -> str:
        return f"{self.__module__}.{self.__qualname__}.apply"

    def __hash__(self) -> int:
        return hash(self.function)

    def __reduce__(self) -> tuple[Any, ...]:
        return Applied, (self.function,)


@contextmanager
def functions_as_nodes() -> Iterator[None]:
    """Inside the `with`, a function of proxies is a node that calls it, so that its gradient stays what it is."""

    def apply(original: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        proxy = next((leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, fx.Proxy)), None)
        if proxy is None:
            return original(*args, **kwargs)
        return proxy.tracer.create_proxy("call_function", Applied(original.__self__), args, kwargs)

    with _replaced(apply):
        yield


@contextmanager
def functions_that_are_called() -> Iterator[list[str]]:
    """Inside the `with`, the names of the functions that are called are collected, but for those of torch."""
    names: list[str] = []

    def apply(original: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if not original.__self__.__module__.startswith("torch."):
            names.append(original.__self__.__name__)
        return original(*args, **kwargs)

    with _replaced(apply):
        yield names


@contextmanager
def _replaced(apply: Callable[..., Any]) -> Iterator[None]:
    original = vars(Function)["apply"]

    def replaced(cls: type[Function], *args: Any, **kwargs: Any) -> Any:
        return apply(original.__get__(None, cls), args, kwargs)

    Function.apply = classmethod(replaced)
    try:
        yield
    finally:
        Function.apply = original
