"""The inputs that an ONNX file declares."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from qat.export.onnx.runtime import session

DTYPES = {"float": torch.float32, "double": torch.float64, "float16": torch.float16, "bool": torch.bool}
FREE_SIZE = 1
"""The size of a free axis in an example."""


def example_of_file(path: str | Path) -> tuple[Tensor, ...]:
    """One sample of noise for each input of a file, in order; free axes, and the batch if it is free, are 1.

    Floats are normally distributed; whole numbers are 0, or 1 in masks.

    Raises:
        RuntimeError: ONNX Runtime cannot open the file.
    """
    generator = torch.Generator().manual_seed(0)
    examples = []
    for given in session(path).get_inputs():
        shape = [size if isinstance(size, int) and size > 0 else FREE_SIZE for size in given.shape]
        kind = given.type.removeprefix("tensor(").removesuffix(")")
        dtype = DTYPES.get(kind) or getattr(torch, kind)
        if dtype.is_floating_point:
            examples.append(torch.randn(shape, generator=generator).to(dtype))
        else:
            examples.append(torch.full(shape, int("mask" in given.name), dtype=dtype))
    return tuple(examples)


def fixed_batch(path: str | Path) -> int | None:
    """The number of samples that a file takes at a time; None if it is free."""
    sizes = {given.shape[0] for given in session(path).get_inputs() if given.shape}
    return next((size for size in sizes if isinstance(size, int)), None)
