"""A hook of one object, of a LightningModule for example, replaced for a while."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

_BEFORE = "_hook_before_qat"


def wrap_hook(module: object, name: str, around: Callable[[Callable[..., Any]], Callable[..., Any]]) -> None:
    """Make `around(hook)` the hook `name` of this instance. A wrapper that an interrupted run left behind goes first."""
    unwrap_hook(module, name)
    hook = getattr(module, name)
    wrapper = functools.wraps(hook)(around(hook))
    setattr(wrapper, _BEFORE, vars(module).get(name))  # the user's own instance attribute, or None
    vars(module)[name] = wrapper


def unwrap_hook(module: object, name: str) -> None:
    """The hook as it was before `wrap_hook`; nothing if it was not wrapped."""
    wrapper = vars(module).get(name)
    if wrapper is None or not hasattr(wrapper, _BEFORE):
        return
    before = getattr(wrapper, _BEFORE)
    if before is None:
        del vars(module)[name]
    else:
        vars(module)[name] = before
