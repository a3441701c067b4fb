"""From a batch of any dataloader to the arguments of a network: the one place that parses batches."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from qat.capture import copies
from qat.messages import type_of
from qat.operations import is_label

_POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


class Call(NamedTuple):
    """What a network is called with."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    @property
    def example_inputs(self) -> tuple[Any, ...] | dict[str, Any]:
        """The same as example inputs of `qat.prepare`; a call has either positional or keyword arguments."""
        return self.kwargs or self.args

    @property
    def float_parts(self) -> list[tuple[str, Tensor]]:
        """The floating-point tensors among the arguments, see `float_parts`."""
        alone = self.args[0] if len(self.args) == 1 and not self.kwargs else self.args
        return [*float_parts(alone), *float_parts(self.kwargs)]


class UnfitBatchError(ValueError, RuntimeError):
    """A network cannot run on a batch: bad input, and an error of a forward that ran."""


def call_of(model: nn.Module, batch: Any) -> Call:
    """What `model` is called with for this batch: what its forward takes; the rest, such as labels, is ignored.

    Args:
        model: any module.
        batch: a tensor; a sequence that begins with the arguments, or with a mapping of them; or a mapping, dataclass or
            namedtuple with their names. If it has none of these names, its floating-point tensors count in their order
            ({"image": ..., "label": ...} for `forward(x)`). Values are handed on as they are: tensors of any dtype, None,
            numbers.

    Raises:
        ValueError: an argument that forward requires is missing or a numpy array, or the batch is no tensor and has no parts.
    """
    if isinstance(batch, Tensor):
        return Call((batch,), {})
    has_parts = isinstance(batch, Iterable) or named_parts(batch) is not None
    if isinstance(batch, np.ndarray | str) or not has_parts:
        what = {np.ndarray: "a numpy array", type(None): "None"}.get(type(batch), type_of(batch))
        raise UnfitBatchError(f"a batch is {what}: write a tensor, torch.as_tensor(x), or a list of arguments.")
    call = _call_of_parts(model, batch)
    for name, value in [*enumerate(call.args), *call.kwargs.items()]:
        if isinstance(value, np.ndarray):
            raise UnfitBatchError(f"argument {name} of a batch is a numpy array: write torch.as_tensor(x).")
    return call


def _call_of_parts(model: nn.Module, batch: Any) -> Call:
    parameters = inspect.signature(model.forward).parameters
    named = named_parts(batch)
    if named is None or (isinstance(batch, tuple) and not parameters.keys() & named.keys()):
        first = named_parts(batch[0]) if isinstance(batch, tuple | list) and batch else None
        if first is None or not parameters.keys() & first.keys():
            return Call(_as_many_as(parameters, tuple(batch)), {})
        named = first
    return _named_call(model, named, parameters)


def call_model(model: nn.Module, batch: Any) -> object:
    """Run the model on a copy of one batch, which forward may overwrite; see `call_of`."""
    args, kwargs = copies(tuple(call_of(model, batch)))
    return model(*args, **kwargs)


def positional_arguments(model: nn.Module, batch: Any, labels: bool = True) -> tuple[Any, ...]:
    """The arguments of `call_of` in the order of forward; one that was left out before another has its default.

    Args:
        model: any module.
        batch: see `call_of`.
        labels: whether labels that forward takes by name and does not require count; a file has none.

    Raises:
        ValueError: an argument that forward requires is missing, or an argument has no position.
    """
    args, kwargs = call_of(model, batch)
    parameters = list(inspect.signature(model.forward).parameters.values())[len(args) :]
    if not labels:
        required = {p.name for p in parameters if p.default is p.empty}
        kwargs = {name: value for name, value in kwargs.items() if name in required or not is_label(name)}
    if not kwargs:
        return args
    by_position = [p for p in parameters if p.kind in _POSITIONAL]
    names = [p.name for p in by_position]
    if alone := [name for name in kwargs if name not in names]:
        raise ValueError(
            f"forward of {type(model).__name__} takes {', '.join(map(repr, alone))} by name alone, so that it has no position: "
            "write forward(self, x, y) with a name for each."
        )
    until = by_position[: 1 + max(names.index(name) for name in kwargs)]
    if missing := [p.name for p in until if p.name not in kwargs and p.default is p.empty]:
        raise ValueError(
            f"a batch has {', '.join(map(repr, kwargs))}, but forward of {type(model).__name__} needs "
            f"{', '.join(map(repr, missing))}, too: add it."
        )
    return (*args, *(kwargs.get(p.name, p.default) for p in until))


def named_parts(batch: Any) -> dict[str, Any] | None:
    """The parts of a mapping, dataclass or namedtuple by name; None if the batch has no names."""
    if isinstance(batch, Mapping):
        return {str(key): value for key, value in batch.items()}
    if dataclasses.is_dataclass(batch) and not isinstance(batch, type):
        return {field.name: getattr(batch, field.name) for field in dataclasses.fields(batch)}
    return dict(batch._asdict()) if isinstance(batch, tuple) and hasattr(batch, "_asdict") else None


def not_finite_sentence(where: str, name: str) -> str:
    """The sentence about a batch that holds NaN or infinity."""
    return f"{where[0].upper()}{where[1:]} holds NaN or infinity{name and ' in '}{name}: mend these samples, or leave them out."


def float_parts(inputs: Any, name: str = "") -> Iterator[tuple[str, Tensor]]:
    """The floating-point tensors of a network's inputs with their names, such as "x" or "[1]"; "" if there is but one."""
    if isinstance(inputs, Tensor):
        if inputs.is_floating_point() and inputs.dtype.itemsize > 1 and inputs.numel():
            yield name, inputs.detach()
        return
    parts: Mapping[str, Any] | None = named_parts(inputs)
    if parts is None and isinstance(inputs, tuple | list):
        parts = {f"[{i}]": part for i, part in enumerate(inputs)}
    for key, part in (parts or {}).items():
        yield from float_parts(part, f"{name}{key}" if key.startswith("[") else f"{name}.{key}".lstrip("."))


def is_usable(x: Tensor) -> Tensor:
    """Whether a tensor that is not empty holds neither NaN nor infinity, a bool tensor (); a mask of 0 and -inf is usable."""
    lowest, highest = x.aminmax()
    return (highest < torch.inf) & ((lowest > -torch.inf) | (highest <= 0))


def _named_call(model: nn.Module, named: dict[str, Any], parameters: Mapping[str, inspect.Parameter]) -> Call:
    if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        return Call((), named)
    taken = {name: value for name, value in named.items() if name in parameters}
    required = [
        p.name for p in parameters.values() if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
    ]
    missing = [name for name in required if name not in taken]
    if not missing:
        return Call((), taken)
    floats = [value for value in named.values() if isinstance(value, Tensor) and value.is_floating_point()]
    if not taken and len(floats) >= len(required):
        return Call(tuple(floats[: len(required)]), {})
    raise ValueError(
        f"a batch has {', '.join(map(repr, named)) or 'no keys'}, but forward of {type(model).__name__} needs "
        f"{', '.join(map(repr, missing))}: name the parts as its arguments, or say how it is called, "
        "calibrate(model, batches, forward=lambda model, batch: model(batch['image']))."
    )


def _as_many_as(parameters: Mapping[str, inspect.Parameter], arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    """The first arguments, as many as forward takes by position."""
    kinds = [p.kind for p in parameters.values()]
    if inspect.Parameter.VAR_POSITIONAL in kinds:
        return arguments
    return arguments[: sum(kind in _POSITIONAL for kind in kinds)]
