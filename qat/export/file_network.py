"""A file as a module, run by its own runtime: what all targets share."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

from qat.arguments import as_path
from qat.report.text_of_numbers import format_count
from qat.torch_private import tree_flatten, tree_leaves, tree_unflatten


def written_file(path: object) -> Path:
    """The path of a file that an exporter wrote.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not a path.
    """
    found = as_path(path)
    if not found.is_file():
        what = "is a folder" if found.is_dir() else "does not exist"
        raise FileNotFoundError(
            f"{found} {what}: write the file with qat.export_onnx(integer, example_inputs, path), or the writer of another "
            "target."
        )
    return found


def tensors_for(names: Sequence[str], inputs: Sequence[Any]) -> list[Tensor]:
    """The tensors in the arguments of a network, nested or not, one for each input of a file.

    Raises:
        ValueError: there are more or fewer.
    """
    tensors = [x for x in tree_leaves(list(inputs)) if isinstance(x, Tensor)]
    if len(tensors) != len(names):
        raise ValueError(
            f"the file takes {format_count(len(names), 'tensor')} ({', '.join(names)}), not {len(tensors)}: write the "
            "arguments of the network, torch.as_tensor(x) for an array."
        )
    return tensors


class FileNetwork(nn.Module):
    """A file as a module: tensors in, and the file's output out, or a tuple of several.

    A subclass opens the file in its `__init__`, and runs it in `outputs`.

    Args:
        path: the file.
        threads: number of threads; None lets the runtime choose.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: `path` is not a path.
    """

    def __init__(self, path: str | Path, threads: int | None = None) -> None:
        super().__init__()
        self.path, self.threads = str(written_file(path)), threads

    @property
    def size_bytes(self) -> int:
        """Size of the file on disk."""
        return Path(self.path).stat().st_size

    def outputs(self, inputs: tuple[Any, ...]) -> list[Tensor]:
        """All outputs of a batch."""
        raise TypeError(f"{type(self).__name__} must define outputs")

    def forward(self, *inputs: Tensor) -> Tensor | tuple[Tensor, ...]:
        results = tuple(self.outputs(inputs))
        return results[0] if len(results) == 1 else results

    def __deepcopy__(self, memo: object) -> Self:
        return type(self)(self.path, self.threads)


class ReturnsAs(nn.Module):
    """A file as a module whose outputs lie in the containers of the network that it was written from: files have a flat list.

    Args:
        file: the file.
        network: what says how its outputs are returned; it runs once.
    """

    def __init__(self, file: nn.Module, network: nn.Module) -> None:
        super().__init__()
        self.file, self.network = file, network
        self._returned: tuple[list[Any], Any] | None = None

    def forward(self, *inputs: Tensor) -> Any:
        outputs = self.file(*inputs)
        if self._returned is None:
            with torch.no_grad():
                self._returned = tree_flatten(self.network(*inputs))
        leaves, containers = self._returned
        given = iter(outputs if isinstance(outputs, tuple) else (outputs,))
        return tree_unflatten([next(given, x) if isinstance(x, Tensor) else x for x in leaves], containers)
