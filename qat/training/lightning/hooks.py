"""Hooks of a single object, such as a LightningModule, wrapped for a while."""

from __future__ import annotations

import functools
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

_BEFORE = "_hook_before_qat"


def wrap_hook(module: object, name: str, around: Callable[[Callable[..., Any]], Callable[..., Any]]) -> None:
    """Make `around(hook)` the hook `name` of this instance. A wrapper that an interrupted run left behind is removed first."""
    unwrap_hook(module, name)
    hook = getattr(module, name)
    wrapper = functools.wraps(hook)(around(hook))
    setattr(wrapper, _BEFORE, vars(module).get(name))  # the user's own instance attribute, or None
    vars(module)[name] = wrapper


def unwrap_hook(module: object, name: str) -> None:
    """Undo `wrap_hook`, if the hook is wrapped."""
    wrapper = vars(module).get(name)
    if wrapper is None or not hasattr(wrapper, _BEFORE):
        return
    before = getattr(wrapper, _BEFORE)
    if before is None:
        del vars(module)[name]
    else:
        vars(module)[name] = before


def run_before(module: object, name: str, action: Callable[..., object]) -> None:
    """Wrap the hook `name` of this instance: `action` is called first, with the same arguments."""

    def around(hook: Callable[..., Any]) -> Callable[..., Any]:
        def action_then_hook(*args: Any) -> Any:
            action(*args)
            return hook(*args)

        return action_then_hook

    wrap_hook(module, name, around)


def run_after(module: object, name: str, action: Callable[[], object]) -> None:
    """Wrap the hook `name` of this instance: `action` is called after it."""

    def around(hook: Callable[..., Any]) -> Callable[..., Any]:
        def hook_then_action(*args: Any, **options: Any) -> Any:
            result = hook(*args, **options)
            action()
            return result

        return hook_then_action

    wrap_hook(module, name, around)


def run_inside(module: object, name: str, context: Callable[[], AbstractContextManager[None]]) -> None:
    """Wrap the hook `name` of this instance: it runs inside `with context()`."""

    def around(hook: Callable[..., Any]) -> Callable[..., Any]:
        def hook_in_context(*args: Any) -> Any:
            with context():
                return hook(*args)

        return hook_in_context

    wrap_hook(module, name, around)
