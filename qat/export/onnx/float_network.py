"""The float network as an ONNX file: what the int8 file's size and latency are compared with."""

from __future__ import annotations

import copy
from pathlib import Path

import torch
from torch import Tensor, nn

from qat.contexts import quiet
from qat.files import atomic_path


def export_float_onnx(model: nn.Module, example_inputs: Tensor | tuple[Tensor, ...], path: str | Path) -> None:
    """Write a float model with torch's own exporter, weights inside, first axis free. Whole or not at all."""
    examples = example_inputs if isinstance(example_inputs, tuple) else (example_inputs,)
    batch = torch.export.Dim("batch")
    with atomic_path(path) as unfinished, quiet():
        doubled = tuple(torch.cat([x, x]) for x in examples)
        torch.onnx.export(
            copy.deepcopy(model).eval(),
            doubled,
            str(unfinished),
            dynamo=True,
            external_data=False,
            dynamic_shapes=tuple({0: batch} for _ in examples),
            verbose=False,
        )
