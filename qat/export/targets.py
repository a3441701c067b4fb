"""The table of targets: what each file format allows, what writes it, and what runs and verifies it. A new one is one entry."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from qat.messages import instead_of

if TYPE_CHECKING:
    from torch import nn

    from qat.export.verification import Verification
    from qat.transform import Policy
    from qat.transform.target_grids import TargetGrids


@dataclass(frozen=True)
class Runtime:
    """What runs files. Functions are named, not imported: the table is read by `--help`.

    Attributes:
        name: what `qat.verify(..., runtime=NAME)` says.
        verifier: function (path, integer model, batches, prepared=, record=) -> Verification, which knows its tolerance.
        network: class or function (path, threads) -> module that runs the file.
        package: what has to be installed beside `qat`, under the name by which it is imported; `extra` installs it.
        extra: of the distribution.
    """

    name: str
    verifier: str
    network: str
    package: str = ""
    extra: str = ""

    def check(self) -> None:
        """Check that it is installed.

        Raises:
            ImportError: it is not.
        """
        if self.package and importlib.util.find_spec(self.package) is None:
            raise ModuleNotFoundError(
                f"{self.package} is not installed, which runs files for {self.name}: pip install "
                f"'qat-lightning[{self.extra}]'."
            )

    def verify(
        self, path: Path, integer: nn.Module, batches: Iterable[Any], prepared: nn.Module | None, record: bool
    ) -> Verification:
        """Compare a file with the integer model, and that with the prepared network."""
        found: Verification = _named(self.verifier)(path, integer, batches, prepared=prepared, record=record)
        return found

    def open(self, path: Path, threads: int | None = None) -> nn.Module:
        """A file as a module. threads: None lets the runtime choose."""
        module: nn.Module = _named(self.network)(path, threads)
        return module


@dataclass(frozen=True)
class Target:
    """A kind of file.

    Attributes:
        name: what `--target` and `policy.target` say; `TARGET_GRIDS` has what it can run under the same name.
        suffixes: what the names of its files end in; the first target of a suffix is its default.
        summary: for `--help`.
        writer: function (integer model, example inputs, path).
        runs_in: the runtime that its files are verified and measured in.
    """

    name: str
    suffixes: tuple[str, ...]
    summary: str
    writer: str
    runs_in: str = "onnxruntime"

    @property
    def runtime(self) -> Runtime:
        """The runtime that its files are verified and measured in."""
        return runtime_of(self.runs_in)

    @property
    def grids(self) -> TargetGrids:
        """What it can run."""
        from qat.transform.target_grids import target_grids  # late: it waits for torch

        return target_grids(self.name)

    def check(self, policy: Policy) -> None:
        """Check that a network of this policy can be written for this target.

        Raises:
            ValueError: it cannot; the message says what to write instead.
            ImportError: the runtime that is to verify the file is not installed.
        """
        self.runtime.check()
        wanted = replace(policy, target=self.name)
        if wanted.rules != policy.rules or wanted.residual_rule() != policy.residual_rule():
            raise ValueError(
                f"a file for {self.name} needs grids that the policy leaves open: write policy.target={self.name}, or "
                f'qat.load_policy(policy, target="{self.name}").'
            )

    def write(self, integer: nn.Module, example: Any, path: Path) -> None:
        """Write an integer model, whole or not at all."""
        _named(self.writer)(integer, example, path)

    def verify(self, path: Path, integer: nn.Module, batches: Iterable[Any], prepared: nn.Module) -> Verification:
        """Compare a file with the integer model, and that with the prepared network; the file keeps the result."""
        return self.runtime.verify(path, integer, batches, prepared, record=True)

    def network(self, path: Path, threads: int | None = None) -> nn.Module:
        """A file as a module, run by its own runtime. threads: None lets the runtime choose."""
        return self.runtime.open(path, threads)

    def check_suffix(self, path: Path) -> None:
        """Check that this target can have a file of this name.

        Raises:
            ValueError: its files end otherwise.
        """
        if path.suffix not in self.suffixes:
            raise ValueError(
                f"{path.name} is not the name of a file for {self.name}: write {path.stem}{' or '.join(self.suffixes)}."
            )

    def path(self, default: Path) -> Path:
        """The name of this target's file beside that of the default target: model_portable.onnx beside model.onnx."""
        if self is TARGETS[0]:
            return default
        return default.with_name(f"{default.stem}_{self.name}{self.suffixes[0]}")


Entry = TypeVar("Entry", Runtime, Target)
RUNTIMES = (
    Runtime("onnxruntime", "qat.export.onnx:verify_onnx", "qat.export:OnnxRuntimeNetwork"),
    Runtime(
        "openvino", "qat.export.openvino:verify_openvino", "qat.export.openvino:OpenVinoNetwork", "openvino", "openvino"
    ),
    Runtime("torch", "qat.export.pt2e:verify_pt2e", "qat.export.pt2e:Pt2eNetwork"),
    Runtime(
        "executorch",
        "qat.export.executorch:verify_executorch",
        "qat.export.executorch:ExecutorchNetwork",
        "executorch",
        "executorch",
    ),
    Runtime("litert", "qat.export.litert:verify_litert", "qat.export.litert:LitertNetwork", "litert_torch", "litert"),
)
TARGETS = (
    Target("onnxruntime", (".onnx",), "ONNX, for ONNX Runtime", "qat.export:export_onnx"),
    Target("portable", (".onnx",), "plain QDQ ONNX of opset 13, for other runtimes", "qat.export.onnx:export_portable"),
    Target("openvino", (".onnx",), "the same, run in OpenVINO", "qat.export.onnx:export_portable", runs_in="openvino"),
    Target("tensorrt", (".onnx",), "ONNX as TensorRT wants it", "qat.export.onnx:export_tensorrt"),
    Target(
        "pt2e", (".pt2",), "a program of torch.export, for PyTorch's own tools", "qat.export.pt2e:export_pt2e", "torch"
    ),
    Target("executorch", (".pte",), "ExecuTorch, XNNPACK", "qat.export.executorch:export_executorch", "executorch"),
    Target("litert", (".tflite",), "LiteRT (TensorFlow Lite)", "qat.export.litert:export_litert", "litert"),
)


def target_named(name: str) -> Target:
    """The target of a name.

    Raises:
        ValueError: there is none.
    """
    return _of_name(name, TARGETS, "target {}")


def target_of_file(path: Path) -> Target | None:
    """The default target of a file's suffix; None if no target writes such files."""
    return next((t for t in TARGETS if path.suffix in t.suffixes), None)


def runtime_of(name: str) -> Runtime:
    """The runtime of a name.

    Raises:
        ValueError: there is none.
    """
    return _of_name(name, RUNTIMES, "runtime={!r}")


def _of_name(name: str, table: Sequence[Entry], what: str) -> Entry:
    known = [entry.name for entry in table]
    if name not in known:
        raise ValueError(f"{what.format(name)} does not exist: {instead_of(name, known)}")
    return table[known.index(name)]


def _named(reference: str) -> Callable[..., Any]:
    module, _, name = reference.partition(":")
    found: Callable[..., Any] = getattr(importlib.import_module(module), name)
    return found
