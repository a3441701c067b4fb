"""The table of file formats: what writes, runs and verifies them. A new target is one entry."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn

    from qat.export import Verification

from qat.cli.errors import UsageError


@dataclass(frozen=True)
class Target:
    """A kind of file. Functions are named, not imported: the table is read by `--help`.

    Attributes:
        name: what `--target` says.
        suffixes: what the names of its files end in; the first target of a suffix is its default.
        summary: for `--help`.
        writer: function (integer model, example inputs, path).
        verifier: function (path, integer model, batches, prepared=, record=) -> Verification.
        runner: class or function (path, threads) -> module that runs the file.
    """

    name: str
    suffixes: tuple[str, ...]
    summary: str
    writer: str
    verifier: str
    runner: str

    def write(self, integer: nn.Module, example: Any, path: Path) -> None:
        """Write an integer model."""
        _named(self.writer)(integer, example, path)

    def verify(self, path: Path, integer: nn.Module, batches: Iterable[Any], prepared: nn.Module) -> Verification:
        """Compare a file with the integer model, and that with the prepared network."""
        found: Verification = _named(self.verifier)(path, integer, batches, prepared=prepared, record=True)
        return found

    def network(self, path: Path, threads: int | None = None) -> nn.Module:
        """A file as a module, run by its own runtime."""
        module: nn.Module = _named(self.runner)(path, threads)
        return module


TARGETS = (
    Target(
        "onnxruntime",
        (".onnx",),
        "ONNX, for ONNX Runtime",
        "qat.export:export_onnx",
        "qat.export:verify",
        "qat.export:OnnxRuntimeNetwork",
    ),
)


def target_of(path: Path, name: str | None = None) -> Target:
    """The target of a name, else of a file's suffix.

    Raises:
        UsageError: there is no such target, or it does not write files of this name.
    """
    known = ", ".join(f"{t.name} ({' or '.join(t.suffixes)})" for t in TARGETS)
    if name is None:
        found = next((t for t in TARGETS if path.suffix in t.suffixes), None)
        if found is None:
            raise UsageError(f"--output {path} ends in nothing that can be written: write a name for one of {known}.")
        return found
    target = next((t for t in TARGETS if t.name == name), None)
    if target is None:
        close = difflib.get_close_matches(name, [t.name for t in TARGETS], n=1)
        hint = f"did you mean {close[0]}?" if close else f"write one of {known}."
        raise UsageError(f"--target {name} does not exist: {hint}")
    if path.suffix not in target.suffixes:
        raise UsageError(
            f"--output {path} is no name for --target {name}: write one that ends in {target.suffixes[0]}."
        )
    return target


def runs_as_file(path: Path) -> Target | None:
    """The target that runs this file; None if it is no exported file."""
    return next((t for t in TARGETS if path.suffix in t.suffixes), None)


def _named(reference: str) -> Callable[..., Any]:
    module, _, name = reference.partition(":")
    found: Callable[..., Any] = getattr(importlib.import_module(module), name)
    return found
