"""The structure of what a network returns as plain data, and back.

A tensor (or whatever else is one value) is null, a list a list; `{"tuple": [...]}`, `{"dict": [[key, value], ...]}`, and
`{"made": CLASS, "fields": [[name, value], ...]}` for a dataclass, a named tuple, an ordered dict or an output of transformers.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from qat.structure.names import Names, path_of
from qat.structure.values import MAX_DEPTH, NotPlainError
from qat.torch_private import TreeSpec, tree_flatten, tree_unflatten


def describe_result(spec: TreeSpec | None) -> Any:
    """What a manifest says of the structure.

    Raises:
        NotPlainError: it holds a class that is not made of its fields alone.
    """
    return None if spec is None else _describe(tree_unflatten([torch.empty(0)] * spec.num_leaves, spec))


def build_result(data: Any, names: Names) -> TreeSpec | None:
    """The structure; None if the manifest holds none, because a graph can return it.

    Raises:
        NotAllowedError: it names a class that a file may not name.
        ValueError: it is not of this format.
    """
    return None if data is None else tree_flatten(_build(data, names))[1]


def _describe(value: Any) -> Any:
    if isinstance(value, Tensor):
        return None
    if type(value) is list:
        return [_describe(item) for item in value]
    if type(value) is tuple:
        return {"tuple": [_describe(item) for item in value]}
    if isinstance(value, Mapping):
        fields = dict(value)
    elif isinstance(value, tuple) and hasattr(value, "_asdict"):
        fields = value._asdict()
    elif dataclasses.is_dataclass(value):
        fields = {field.name: getattr(value, field.name) for field in dataclasses.fields(value) if field.init}
    else:
        raise NotPlainError(f"it returns a {path_of(type(value))}, which is no mapping, named tuple or dataclass")
    for key in fields:
        if not isinstance(key, str | int):
            raise NotPlainError(f"it returns a {type(value).__name__} with the key {key!r:.80}")
    described = [[key, _describe(item)] for key, item in fields.items()]
    return {"dict": described} if type(value) is dict else {"made": path_of(type(value)), "fields": described}


def _build(data: Any, names: Names, depth: int = 0) -> Any:
    if depth > MAX_DEPTH:
        raise ValueError("it is nested too deeply")
    if isinstance(data, list):
        return [_build(item, names, depth + 1) for item in data]
    match data:
        case None:
            return torch.empty(0)
        case {"tuple": list(items)}:
            return tuple(_build(item, names, depth + 1) for item in items)
        case {"dict": list(pairs)}:
            return {key: _build(item, names, depth + 1) for key, item in pairs}
        case {"made": str(path), "fields": list(pairs)}:
            return names.find_output(path)(**{str(key): _build(item, names, depth + 1) for key, item in pairs})
    raise ValueError(f"{data!r:.80} is not a structure of this format")
