"""Put stored tensors into a network that has other values, or none yet (on the meta device)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from qat.torch_private import own_buffers, own_parameters


def aliases_of(model: nn.Module) -> dict[str, str]:
    """Tied parameters and buffers: each name but the first -> the first name."""
    first: dict[int, str] = {}
    tensors = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
    return {name: first[id(t)] for name, t in tensors if first.setdefault(id(t), name) != name}


def fill(
    model: nn.Module,
    tensor: Callable[[str], Tensor],
    shapes: Mapping[str, tuple[int, ...]],
    aliases: Mapping[str, str],
    optional: Callable[[str], bool] = lambda name: False,
) -> None:
    """Give every parameter and buffer of `model` its stored value, in place. Tied ones stay tied.

    Args:
        model: a network; tensors on the meta device become real ones on the CPU.
        tensor: from a name to its value.
        shapes: of all stored tensors by name.
        aliases: other names of stored tensors.
        optional: whether a tensor without a stored value keeps its own.

    Raises:
        ValueError: the network has other tensors than those that are stored.
    """
    made: dict[int, tuple[str, Tensor]] = {}
    for path, module in model.named_modules():
        tensors: tuple[dict[str, Any], ...] = (own_parameters(module), own_buffers(module))
        for kind in tensors:
            for key, old in kind.items():
                name = f"{path}.{key}".lstrip(".")
                stored = aliases.get(name, name)
                if old is None:
                    continue
                if stored not in shapes and optional(name):
                    if old.is_meta:
                        kind[key] = made.setdefault(id(old), (stored, placeholder(tuple(old.shape), old.dtype)))[1]
                    continue
                if id(old) not in made:
                    _check(name, tuple(old.shape), shapes.get(stored))
                    made[id(old)] = stored, _replaced(old, tensor(stored))
                elif made[id(old)][0] != stored:
                    raise ValueError(f"{name!r} is tied to {made[id(old)][0]!r} in the network, and not in the folder")
                kind[key] = made[id(old)][1]
        if isinstance(module, nn.RNNBase):
            module.cpu()  # makes the lists of its weights again
    if missing := sorted(set(shapes) - {stored for stored, _ in made.values()}):
        raise ValueError(f"the network has no {', '.join(missing[:3])}")


def _check(name: str, shape: tuple[int, ...], stored: tuple[int, ...] | None) -> None:
    if stored is None:
        raise ValueError(f"it has no {name!r}")
    if stored != shape:
        raise ValueError(f"{name!r} has the shape {list(stored)}, in the network {list(shape)}")


def _replaced(old: Tensor, value: Tensor) -> Tensor:
    if not isinstance(old, nn.Parameter):
        return value
    if old.is_meta:
        return nn.Parameter(value, requires_grad=old.requires_grad)
    old.data = value.to(old.device)
    return old


def placeholder(shape: tuple[int, ...], dtype: torch.dtype) -> nn.Parameter:
    """A parameter whose value comes later."""
    return nn.Parameter(torch.zeros(shape, dtype=dtype), requires_grad=dtype.is_floating_point or dtype.is_complex)
