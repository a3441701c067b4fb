"""Values of attributes at one moment, with what is in their lists, dicts, sets and deques."""

from __future__ import annotations

from collections import deque
from typing import Any


class Snapshot:
    """A value, and what was in it, however deep it is nested."""

    def __init__(self, value: Any, around: tuple[int, ...] = ()) -> None:
        contents = None if id(value) in around else contents_of(value)
        self.value = value
        self.parts = None if contents is None else [Snapshot(part, (*around, id(value))) for part in contents]

    def is_now(self, value: Any, identical: bool = True) -> bool:
        """Whether this value of an attribute is the one of the snapshot.

        identical: whether lists, dicts, sets and deques must be the same objects, too; torch.export rebuilds those of an LSTM.
        """
        if self.parts is None or type(value) is not type(self.value):
            return same(value, self.value)
        if identical and value is not self.value and not isinstance(value, tuple):
            return False
        contents = contents_of(value) or []
        return len(contents) == len(self.parts) and all(
            part.is_now(now, identical) for part, now in zip(self.parts, contents, strict=True)
        )

    def grows(self, value: Any) -> bool:
        """Whether a value holds other numbers than before, or another number of values. Tensors do not count."""
        contents = contents_of(value)
        if self.parts is None or contents is None:
            return type(value) is type(self.value) and isinstance(value, int | float | str) and value != self.value
        return len(contents) != len(self.parts) or any(
            part.grows(now) for part, now in zip(self.parts, contents, strict=True)
        )

    def contents(self) -> list[Any]:
        """What the value held; a dict's keys and values in turn."""
        return [part.value for part in self.parts or ()]

    def restored(self) -> Any:
        """The value, with its contents put back."""
        contents = [part.restored() for part in self.parts or ()]
        if self.parts is not None and not isinstance(self.value, tuple) and not self.is_now(self.value):
            replace_contents(self.value, contents)
        return self.value


def contents_of(value: Any) -> list[Any] | None:
    """What is in a list, tuple, set, deque or dict (keys and values in turn); None for any other value."""
    if isinstance(value, dict):
        return [part for item in value.items() for part in item]
    return list(value) if isinstance(value, list | tuple | set | deque) else None


def replace_contents(value: Any, contents: list[Any]) -> None:
    """Give a list, set, deque or dict these contents, in place."""
    value.clear()
    if isinstance(value, dict):
        value.update(zip(contents[::2], contents[1::2], strict=True))
    elif isinstance(value, set):
        value.update(contents)
    else:
        value.extend(contents)


def same(a: Any, b: Any) -> bool:
    """Whether two values are one object, or equal numbers, texts or collections of these, which torch.export rebuilds."""
    return a is b or (type(a) is type(b) and isinstance(a, int | float | str | tuple | list | dict) and _equal(a, b))


def _equal(a: Any, b: Any) -> bool:
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(value, b[key]) for key, value in a.items())
    if isinstance(a, tuple | list):
        return len(a) == len(b) and all(map(same, a, b))
    return bool(a == b)
