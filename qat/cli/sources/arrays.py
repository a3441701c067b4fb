"""Batches of the user's own arrays: which part is inputs, and which labels."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from qat.cli.errors import UsageError, usage_errors
from qat.reading.array_file import read_arrays
from qat.reading.malformed import malformed

LABELS = ("y", "label", "labels", "target", "targets")
"""Names of what is predicted."""


def batches_of(text: str, network: nn.Module, size: int) -> Iterator[tuple[Any, Tensor | None]]:
    """Inputs and labels of an .npz file, in batches.

    Raises:
        UsageError: the file cannot be read, or its arrays do not have as many samples each.
    """
    path = Path(text).expanduser()
    if not path.is_file():
        raise UsageError(f"{path} does not exist: write the path of an .npz file.")
    with usage_errors(), malformed(path, "holds no arrays of numbers", "write it with numpy.savez"):
        found = read_arrays(path)
        arrays = {name: torch.from_numpy(x) for name, x in found.items()} if isinstance(found, dict) else {}
    if not arrays:
        raise UsageError(f"{path} holds no arrays by name: write it with numpy.savez(path, x=..., y=...).")
    if any(not x.ndim or len(x) != len(next(iter(arrays.values()))) for x in arrays.values()):
        shapes = ", ".join(f"{name} {tuple(x.shape)}" for name, x in arrays.items())
        raise UsageError(
            f"the arrays of {path} do not have as many samples each ({shapes}): the first axis is samples."
        )
    _check_all_taken(path, list(arrays), network)
    samples = len(next(iter(arrays.values())))
    for start in range(0, samples, size):
        yield without_labels({name: in_float32(x[start : start + size]) for name, x in arrays.items()}, network)


def _check_all_taken(path: Path, names: list[str], network: nn.Module) -> None:
    """Refuse arrays in their order of which one would be ignored: it may hold the labels, under a name of its own."""
    known = _parameters(network)
    label = next((name for name in names if name in LABELS), None)
    inputs = [name for name in names if name != label]
    most = _most_arguments(network, with_defaults=True)
    if len(inputs) > most and not set(inputs) & set(known):
        if twice := next((name for name in inputs if name in LABELS), None):
            raise UsageError(f"{path} has labels twice, as {label} and as {twice}: leave one out.")
        raise UsageError(
            f"{path} has {inputs[most]}, which is neither an argument of the model ({', '.join(known)}) nor labels "
            f"({', '.join(LABELS)}): rename it, or leave it out."
        )


def in_float32(x: Tensor) -> Tensor:
    """Numbers with a fraction as float32."""
    return x.float() if x.dtype in (torch.float64, torch.float16) else x


def without_labels(batch: Any, network: nn.Module) -> tuple[Any, Tensor | None]:
    """Inputs and labels of a batch: a tensor, a sequence that ends in labels, or a mapping with one of `LABELS`."""
    if isinstance(batch, Mapping):
        label = next((name for name in batch if name in LABELS and name not in _parameters(network)), None)
        rest = {name: x for name, x in batch.items() if name != label}
        in_order = [name for name in _parameters(network) if name in rest]  # as files of most targets take them
        named = {name: rest[name] for name in dict.fromkeys([*in_order, *rest])}
        inputs: Any = named if in_order else tuple(rest.values())
        if isinstance(inputs, tuple) and len(inputs) == 1:
            inputs = inputs[0]
        return inputs, None if label is None else _as_labels(batch[label])
    if isinstance(batch, tuple | list):
        taken = _most_arguments(network)
        if len(batch) > taken or (len(batch) == 2 and _are_classes(batch[1]) and not _are_classes(batch[0])):
            inputs, labels = tuple(batch[:-1]), batch[-1]
            return inputs[0] if len(inputs) == 1 else inputs, _as_labels(labels)
        return batch[0] if len(batch) == 1 else tuple(batch), None
    return (batch if isinstance(batch, Tensor) else in_float32(torch.as_tensor(batch))), None


def _as_labels(labels: Any) -> Tensor:
    return labels if isinstance(labels, Tensor) else torch.as_tensor(labels)


def _are_classes(x: Any) -> bool:
    return isinstance(x, Tensor | np.ndarray) and x.ndim == 1 and not torch.as_tensor(x).is_floating_point()


def _parameters(network: nn.Module) -> list[str]:
    """The names that forward, or an ONNX file, takes."""
    session = getattr(network, "session", None)
    if session is not None:
        return [given.name for given in session.get_inputs()]
    return [p.name for p in inspect.signature(network.forward).parameters.values() if p.kind is not p.VAR_POSITIONAL]


def _most_arguments(network: nn.Module, with_defaults: bool = False) -> int:
    """How many arguments forward takes without being told names; many if it takes any number."""
    parameters = list(inspect.signature(network.forward).parameters.values())
    if any(p.kind is p.VAR_POSITIONAL for p in parameters):
        return len(_parameters(network)) if hasattr(network, "session") else 1_000
    return sum((with_defaults or p.default is p.empty) and p.kind is not p.VAR_KEYWORD for p in parameters)
