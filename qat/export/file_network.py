"""A file as a module, run by its own runtime: what all targets share."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

from qat.arguments import as_path
from qat.torch_private import tree_flatten, tree_unflatten


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
        path = as_path(path)
        if not path.is_file():
            raise FileNotFoundError(
                f"{path} does not exist: write it with qat.export_onnx(integer, example_inputs, path), or the writer of "
                "another target."
            )
        self.path, self.threads = str(path), threads

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
