"""Everything that decides what an integer model computes: one hash of it, and where two models differ."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, fx, nn

from qat.quantizers import Quantizer


def fingerprint(model: nn.Module) -> str:
    """sha256, in hexadecimal, of the graph (if it has one), the settings of its modules, and all parameters and buffers.

    Ranges of the last tensor, which dynamic quantizers keep, do not count.
    """
    digest = hashlib.sha256()
    operations = _operations(model) if isinstance(model, fx.GraphModule) else ()
    for line in (*operations, *_settings(model)):
        digest.update(f"{line}\n".encode())
    dynamic = {name for name, m in model.named_modules() if isinstance(m, Quantizer) and m.is_dynamic}
    for name, tensor in sorted([*model.named_parameters(), *model.named_buffers()]):
        if name.rpartition(".")[0] in dynamic:
            continue
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def first_difference(model: nn.Module, other: nn.Module) -> str:
    """The name of the first part in which two integer models differ; "" if they compute the same.

    Buffers of modules that stay in float may change with every call, and do not count.
    """
    ours, theirs = dict(_parts(model)), dict(_parts(other))
    return next((name for name in ours | theirs if not _equal(ours.get(name), theirs.get(name))), "")


def _parts(model: nn.Module) -> Iterator[tuple[str, Tensor | str]]:
    for name, module in model.named_modules():
        of_integers = module is not model and type(module).__module__.startswith("qat.integer.")
        if of_integers:
            yield name, "\n".join(_settings_of(name, module))
        tensors = dict(module.named_parameters(recurse=False))
        for key, tensor in (tensors | (dict(module.named_buffers(recurse=False)) if of_integers else {})).items():
            yield f"{name}.{key}", tensor
    if isinstance(model, fx.GraphModule):
        yield "graph", "\n".join(_operations(model))


def _equal(x: Tensor | str | None, y: Tensor | str | None) -> bool:
    if isinstance(x, Tensor) and isinstance(y, Tensor):
        return x.shape == y.shape and torch.equal(x.detach().cpu(), y.detach().cpu().to(x.dtype))
    return type(x) is type(y) and x == y


def _operations(model: fx.GraphModule) -> Iterator[str]:
    for node in model.graph.nodes:
        yield f"{node.op} {node.name} {_described(node.target)} {node.args} {sorted(node.kwargs.items())}"


def _settings(model: nn.Module) -> Iterator[str]:
    for name, module in model.named_modules():
        yield f"{name} {type(module).__qualname__}"
        if module is not model:
            yield from _settings_of(name, module)


def _settings_of(name: str, module: nn.Module) -> Iterator[str]:
    for key, value in sorted(vars(module).items()):
        if not key.startswith("_") and key != "training" and not isinstance(value, Tensor | nn.Module):
            yield f"{name}.{key} {_described(value)}"


def _described(value: Any) -> str:
    """A text for a value that is the same in every process."""
    if callable(value):
        return f"{getattr(value, '__module__', '')}.{getattr(value, '__qualname__', type(value).__qualname__)}"
    text = repr(value)
    return type(value).__qualname__ if " at 0x" in text else text
