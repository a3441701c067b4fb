"""Attributes of modules and arguments of graphs as JSON, and back.

Numbers, texts, None and lists are themselves. Everything else is an object with one key that says what it is:

    {"tuple": [1, 1]}, {"dtype": "float32"}, {"object": "qat.grid.Grid", "state": {"bits": 4, ...}}
"""

from __future__ import annotations

import enum
import functools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from qat.structure.names import OWN_PACKAGES, Names, find_function, name_of_function, path_of

MAX_DEPTH = 50


class NotPlainError(ValueError):
    """Something that cannot be written as plain data, or that a file may not name."""


@dataclass
class Describer:
    """From values to plain data.

    Attributes:
        names: what a file may name.
        store: keeps a tensor that is not a parameter or buffer, and returns its name in the file.
        node: the name of a node in a graph; None outside of graphs.
    """

    names: Names
    store: Callable[[Tensor], str] | None = None
    node: Callable[[Any], str | None] = lambda value: None

    def __call__(self, value: Any, where: str) -> Any:
        """The value as plain data.

        Args:
            value: what is described.
            where: its name, for the message.

        Raises:
            NotPlainError: it has no such form, or a file may not name it.
        """
        if value is None or isinstance(value, bool | str) or type(value) is int:
            return value
        if type(value) is float:
            return value if math.isfinite(value) else {"float": str(value)}
        if (name := self.node(value)) is not None:
            return {"node": name}
        if isinstance(value, Tensor):
            if self.store is None or isinstance(value, nn.Parameter):
                raise NotPlainError(f"{where} is a tensor")
            return {"tensor": self.store(value.detach())}
        return self._collection(value, where)

    def _collection(self, value: Any, where: str) -> Any:
        def each(items: Any) -> list[Any]:
            return [self(item, f"{where}[{i}]") for i, item in enumerate(items)]

        if isinstance(value, torch.Size):
            return {"size": list(value)}
        if isinstance(value, tuple) and not hasattr(value, "_fields"):
            return {"tuple": each(value)}
        if isinstance(value, list):
            return each(value)
        if isinstance(value, Mapping):
            return {"dict": [[self(k, where), self(v, f"{where}[{k!r}]")] for k, v in value.items()]}
        if isinstance(value, slice):
            return {"slice": each((value.start, value.stop, value.step))}
        if value is Ellipsis:
            return {"ellipsis": True}
        for kind in (torch.dtype, torch.memory_format, torch.layout):
            if isinstance(value, kind):
                return {kind.__name__: str(value).removeprefix("torch.")}
        if isinstance(value, torch.device):
            return {"device": "cpu"}
        return self._named(value, where)

    def _named(self, value: Any, where: str) -> Any:
        if isinstance(value, type):
            if value in (int, float, bool) or self.names.knows(value):
                return {"class": path_of(value)}
        elif isinstance(value, functools.partial):
            part = [value.func, list(value.args), dict(value.keywords)]
            return {"partial": [self(item, where) for item in part]}
        elif callable(value) and (name := name_of_function(value)) is not None:
            return {"function": name}
        elif _is_own(type(value)) and self.names.knows(type(value)):
            return self._object(value, where)
        raise NotPlainError(f"{where} is {value!r:.80}, of {path_of(type(value))}, which is not plain data")

    def _object(self, value: Any, where: str) -> Any:
        path = path_of(type(value))
        if isinstance(value, enum.Enum):
            return {"enum": path, "name": value.name}
        if isinstance(value, tuple):
            return {"fields": path, "values": [self(item, where) for item in value]}
        if isinstance(value, nn.Module):
            raise NotPlainError(f"{where} is a module")
        return {"object": path, "state": {k: self(v, f"{where}.{k}") for k, v in vars(value).items()}}


@dataclass
class Reader:
    """From plain data to values.

    Attributes:
        names: what a file may name.
        tensor: from a name to a tensor in the file.
        node: from a name to a node of the graph under construction.
    """

    names: Names
    tensor: Callable[[str], Tensor] | None = None
    node: Callable[[str], Any] | None = None

    def __call__(self, data: Any, depth: int = 0) -> Any:
        """The value that the data describe; `depth` counts the levels around it.

        Raises:
            ValueError: they are not of this format, or name what a file may not name.
        """
        if depth > MAX_DEPTH:
            raise ValueError("it is nested too deeply")
        if data is None or isinstance(data, bool | int | float | str):
            return data
        if isinstance(data, list):
            return [self(item, depth + 1) for item in data]
        match data:
            case {"tuple": list(items)}:
                return tuple(self(item, depth + 1) for item in items)
            case {"size": list(items)} if all(type(i) is int for i in items):
                return torch.Size(items)
            case {"dict": list(pairs)}:
                return {self(k, depth + 1): self(v, depth + 1) for k, v in pairs}
            case {"float": "inf" | "-inf" | "nan" as text}:
                return float(text)
            case {"slice": [start, stop, step]}:
                return slice(*(self(part, depth + 1) for part in (start, stop, step)))
            case {"ellipsis": True}:
                return ...
            case {"device": "cpu"}:
                return torch.device("cpu")
            case {"tensor": str(name)} if self.tensor is not None:
                return self.tensor(name)
            case {"node": str(name)} if self.node is not None:
                return self.node(name)
        return self._named(data, depth)

    def _named(self, data: Any, depth: int) -> Any:
        for kind in (torch.dtype, torch.memory_format, torch.layout):
            if isinstance(data, dict) and isinstance(name := data.get(kind.__name__), str):
                found = vars(torch).get(name)
                if isinstance(found, kind):
                    return found
        match data:
            case {"class": str(path)}:
                plain = {"builtins.int": int, "builtins.float": float, "builtins.bool": bool}
                return plain.get(path) or self.names.find_class(path)
            case {"function": str(name)}:
                return find_function(name)
            case {"partial": [function, list(args), keywords]}:
                return functools.partial(self(function), *self(args, depth + 1), **self(keywords, depth + 1))
            case {"enum": str(path), "name": str(name)}:
                return self._own(path)[name]  # type: ignore[index]
            case {"fields": str(path), "values": list(values)}:
                return self._own(path)(*self(values, depth + 1))
            case {"object": str(path), "state": dict(state)}:
                made: Any = object.__new__(self._own(path))
                vars(made).update({str(k): self(v, depth + 1) for k, v in state.items()})
                return made
        raise ValueError(f"{data!r:.80} is not a value of this format")

    def _own(self, path: str) -> type:
        cls = self.names.find_class(path)
        if not _is_own(cls) or issubclass(cls, nn.Module):
            raise ValueError(f"{path} is not a value of this format")
        return cls


def _is_own(cls: type) -> bool:
    return cls.__module__.startswith(OWN_PACKAGES)
