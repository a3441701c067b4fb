"""One hash for everything that decides what an integer model computes."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn

from qat.integer.integer_model import IntegerModel
from qat.quantizers import Quantizer


def fingerprint(model: nn.Module) -> str:
    """sha256, in hexadecimal, of the graph (if it has one), the settings of its modules, and all parameters and buffers.

    Ranges of the last tensor, which dynamic quantizers keep, do not count.
    """
    digest = hashlib.sha256()
    operations = _operations(model) if isinstance(model, IntegerModel) else ()
    for line in (*operations, *_settings(model)):
        digest.update(f"{line}\n".encode())
    dynamic = {name for name, m in model.named_modules() if isinstance(m, Quantizer) and m.is_dynamic}
    for name, tensor in sorted([*model.named_parameters(), *model.named_buffers()]):
        if name.rpartition(".")[0] in dynamic:
            continue
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _operations(model: IntegerModel) -> Iterator[str]:
    for node in model.graph.nodes:
        yield f"{node.op} {node.name} {_described(node.target)} {node.args} {sorted(node.kwargs.items())}"


def _settings(model: nn.Module) -> Iterator[str]:
    for name, module in model.named_modules():
        yield f"{name} {type(module).__qualname__}"
        if module is not model:
            for key, value in sorted(vars(module).items()):
                if not key.startswith("_") and key != "training" and not isinstance(value, Tensor | nn.Module):
                    yield f"{name}.{key} {_described(value)}"


def _described(value: Any) -> str:
    """What a value is, the same in every process."""
    if callable(value):
        return f"{getattr(value, '__module__', '')}.{getattr(value, '__qualname__', type(value).__qualname__)}"
    text = repr(value)
    return type(value).__qualname__ if " at 0x" in text else text
