"""The float network as an ONNX file: what the int8 file's size and latency are compared with."""

from __future__ import annotations

import copy
import os
import warnings
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

import torch
from torch import Tensor, nn


def export_float_onnx(model: nn.Module, example_inputs: Tensor | tuple[Tensor, ...], path: str | Path) -> None:
    """Write a float model with torch's own exporter, weights inside, first axis free. Whole or not at all."""
    examples = example_inputs if isinstance(example_inputs, tuple) else (example_inputs,)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.unfinished")
    batch = torch.export.Dim("batch")
    with warnings.catch_warnings(), redirect_stdout(StringIO()):
        warnings.simplefilter("ignore")
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
    os.replace(unfinished, path)  # noqa: PTH105
