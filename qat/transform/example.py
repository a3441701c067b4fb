"""Example inputs of a network: as arguments of its forward, and as plain data in checkpoints."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

Example = Tensor | tuple[Any, ...] | dict[str, Any]
"""A tensor, a tuple of forward's arguments in order, or a dict of keyword arguments."""
MAX_ELEMENTS = 1 << 27
"""The most elements that the tensors of a description may have."""
LazyExample = Callable[[], Example | None]
"""Makes example inputs when they are needed; None if there are none."""
ExampleDescription = Mapping[str, Any]
"""Structure, shapes, dtypes and constants of example inputs: dicts, lists, texts and numbers alone.

    {"dict": {"ids": {"tensor": [2, 16], "dtype": "int64"}, "causal": {"value": True}}}
"""


def arguments_of(example: Example | None) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """(positional, keyword) arguments of forward."""
    if isinstance(example, dict):
        return (), example
    return ((example,) if isinstance(example, Tensor) else example or ()), {}


def describe_example(example: Any) -> ExampleDescription | None:
    """What torch.export reads of example inputs, which is no values of tensors; None if an argument is not plain data.

    >>> describe_example((torch.zeros(2, 3), None))
    {'tuple': [{'tensor': [2, 3], 'dtype': 'float32'}, {'value': None}]}
    """
    if isinstance(example, Tensor):
        return {"tensor": list(example.shape), "dtype": str(example.dtype).removeprefix("torch.")}
    if example is None or type(example) in (bool, int, float, str):
        return {"value": example}
    if type(example) is dict and all(type(key) is str for key in example):
        parts = {key: describe_example(value) for key, value in example.items()}
        return {"dict": parts} if None not in parts.values() else None
    if type(example) in (tuple, list):
        items = [describe_example(value) for value in example]
        return {type(example).__name__: items} if None not in items else None
    return None


def zeros_like_example(description: ExampleDescription, device: torch.device | None = None) -> Any:
    """Example inputs of this description, with zeros in their tensors.

    Raises:
        ValueError: it is not a description.

    >>> zeros_like_example(describe_example({"x": torch.ones(2), "flag": True}))
    {'x': tensor([0., 0.]), 'flag': True}
    """
    if elements_of(description) > MAX_ELEMENTS:
        raise ValueError(f"example inputs of {elements_of(description):,} elements: a checkpoint was changed by hand.")
    return _zeros(description, device)


def elements_of(description: ExampleDescription) -> int:
    """How many elements the tensors of a description have together."""
    match description:
        case {"tensor": [*shape]}:
            if not all(type(n) is int and n >= 0 for n in shape):
                raise ValueError(f"{shape} is not the shape of an example input: a checkpoint was changed by hand.")
            return math.prod(shape)
        case {"dict": Mapping() as parts}:
            return sum(map(elements_of, parts.values()))
        case {"tuple": [*items]} | {"list": [*items]}:
            return sum(map(elements_of, items))
    return 0


def _zeros(description: ExampleDescription, device: torch.device | None) -> Any:
    match dict(description):
        case {"tensor": shape, "dtype": str(name)} if isinstance(dtype := getattr(torch, name, None), torch.dtype):
            return torch.zeros(shape, dtype=dtype, device=device)
        case {"value": value}:
            return value
        case {"dict": parts}:
            return {key: _zeros(part, device) for key, part in parts.items()}
        case {"tuple": items}:
            return tuple(_zeros(item, device) for item in items)
        case {"list": items}:
            return [_zeros(item, device) for item in items]
    raise ValueError(f"{dict(description)} describes no example inputs: a checkpoint was changed by hand.")
