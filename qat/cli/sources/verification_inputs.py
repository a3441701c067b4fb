"""The inputs that a file is verified with."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from qat.cli.arguments import say
from qat.cli.sources.data import Sizes, first_tensor, load_data, map_tensors
from qat.cli.sources.model import Model

BATCH = 250
ARRAYS = (".npy", ".npz", ".safetensors", ".pt", ".pth", ".ckpt")
"""Suffixes of files whose arrays are the inputs, all of them."""


def verification_inputs(text: str, file: Path, prepared: nn.Module, samples: int | None) -> Iterable[Any]:
    """The inputs that `text` names, in batches.

    Args:
        text: a file of arrays, or what `--data` of other commands is (`spellings.DATA`), of which the test part is taken.
        file: the file; one of ONNX says what it takes.
        prepared: the network that was written.
        samples: how many are wanted; None: all.

    Raises:
        UsageError, ValueError, OSError: there are no such data, or they do not fit the network.
    """
    if Path(text).suffix in ARRAYS:
        return _batches(Path(text))
    from qat.export.onnx.file_inputs import example_of_file

    example = example_of_file(file) if file.suffix == ".onnx" else None
    model = Model(str(file), prepared, path=file, example=example)
    data = load_data(text, model, Sizes(train=None, test=samples, batch=BATCH))
    for note in data.notes:
        say(note)
    return (batch.inputs for batch in data.test)


def _batches(path: Path) -> Iterator[Any]:
    """The inputs in a file, in batches: tensors, or mappings if they have names."""
    inputs = _read(path)
    arrays = list(inputs.values()) if isinstance(inputs, dict) else [inputs]
    if not arrays or any(not isinstance(x, Tensor) or x.ndim == 0 or len(x) != len(arrays[0]) for x in arrays):
        raise ValueError(f"{path} does not hold arrays of as many samples each: write (N, ...) arrays.")
    for i in range(0, len(arrays[0]), BATCH):
        if isinstance(inputs, dict):
            yield {name: x[i : i + BATCH] for name, x in inputs.items()}
        else:
            yield inputs[i : i + BATCH]


def _read(path: Path) -> Any:
    """A tensor, or tensors by name; float64 becomes float32. Nothing in the file is executed."""
    from qat.reading.array_file import read_arrays
    from qat.reading.checkpoint import read_checkpoint
    from qat.reading.malformed import malformed
    from qat.reading.tensor_file import read_tensors

    def tensor(x: Any) -> Tensor:
        made = torch.as_tensor(x)
        return made.float() if made.dtype == torch.float64 else made

    readers: dict[str, Any] = {".safetensors": read_tensors, ".npy": read_arrays, ".npz": read_arrays}
    found = readers.get(path.suffix, read_checkpoint)(path)
    with malformed(path, "holds no arrays that can be read", "write it again"):
        return {name: tensor(x) for name, x in found.items()} if isinstance(found, dict) else tensor(found)


def first_samples(batches: Iterable[Any], samples: int | None) -> Iterator[Any]:
    """The first samples of the batches; all if `samples` is None."""
    for batch in batches:
        if samples is None:
            yield batch
            continue
        most = samples
        yield map_tensors(batch, lambda x: x[:most] if x.ndim else x)  # noqa: B023 (called at once)
        samples = max(0, samples - len(first_tensor(batch)))
        if samples == 0:
            return
