"""Bounds on what a file may unpack to."""

from __future__ import annotations

from collections.abc import Mapping, Set
from typing import Any

GROWTH = 4
"""How many times the size of its file the content may take in memory."""
ALWAYS_ALLOWED = 1 << 26
"""Bytes that the content of a file of any size may take."""
MAX_DEPTH = 100
MAX_VALUES = 5_000_000
"""Values in nested data. What occurs twice counts twice: a walk through the data meets it twice."""


def check_bytes(found: int, file_bytes: int, growth: int = GROWTH) -> None:
    """Raise ValueError if content of `found` bytes is too much for a file of `file_bytes`."""
    if found > max(growth * file_bytes, ALWAYS_ALLOWED):
        raise ValueError(f"its {file_bytes:,} bytes declare {found:,}, more than a file of this size holds")


def check_nesting(value: Any, max_values: int = MAX_VALUES) -> list[Any]:
    """Check that nested dicts, lists, tuples and sets can be walked through: few levels, no cycles, not too many values.

    Returns:
        The distinct values that are none of these, in order.

    Raises:
        ValueError: they cannot.
    """
    sizes: dict[int, tuple[int, int] | None] = {}  # id -> (values, levels) inside; None: being counted
    leaves: dict[int, Any] = {}

    def count(part: Any, depth: int) -> tuple[int, int]:
        inside = _inside(part)
        if inside is None:
            leaves[id(part)] = part
            return 1, 0
        if id(part) in sizes:
            found = sizes[id(part)]
            if found is None:
                raise ValueError("it contains itself")
        else:
            if depth >= MAX_DEPTH:
                raise ValueError(f"it is nested more than {MAX_DEPTH} times")
            sizes[id(part)] = None
            counted = [count(x, depth + 1) for x in inside]
            found = 1 + sum(n for n, _ in counted), 1 + max((levels for _, levels in counted), default=0)
            sizes[id(part)] = found
        if found[0] > max_values:
            raise ValueError(f"it has more than {max_values:,} values")
        if depth + found[1] > MAX_DEPTH:
            raise ValueError(f"it is nested more than {MAX_DEPTH} times")
        return found

    count(value, 0)
    return list(leaves.values())


def _inside(value: Any) -> list[Any] | None:
    if isinstance(value, Mapping):
        return [*value.keys(), *value.values()]
    return list(value) if isinstance(value, list | tuple | Set) else None
