"""The float network as an ONNX file, with which the integer file's size and latency are compared."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from qat.arguments import as_path, check_kind, check_network
from qat.capture import copy_model
from qat.export.onnx.torch_exporter import export_with_torch
from qat.files import write_atomically


def export_float_onnx(model: nn.Module, example_inputs: Tensor | tuple[Any, ...], path: str | Path) -> None:
    """Write a float model with torch's own exporter, whole or not at all: weights inside, first axis (the batch) free.

    Args:
        model: any module; it is copied and exported in evaluation mode.
        example_inputs: one batch of the model's inputs; None and numbers are constants of the file.
        path: the file to write.

    Raises:
        ValueError: `model` is not a network, `example_inputs` are no tensors, or `path` is not a path.
    """
    check_network(model)
    path = as_path(path)
    check_kind(
        "example_inputs", example_inputs, (Tensor, tuple), "a tensor, or a tuple of forward's arguments in order"
    )
    examples = example_inputs if isinstance(example_inputs, tuple) else (example_inputs,)
    batch = torch.export.Dim("batch")
    doubled = tuple(torch.cat([x, x]) if _is_batched(x) else x for x in examples)
    shapes = tuple({0: batch} if _is_batched(x) else None for x in examples)
    file = export_with_torch(copy_model(model).eval(), doubled, dynamic_shapes=shapes)
    write_atomically(path, file.SerializeToString())


def _is_batched(x: object) -> bool:
    return isinstance(x, Tensor) and x.ndim > 0
