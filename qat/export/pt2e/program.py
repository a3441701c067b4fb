"""The PT2E module as a file: a program of torch.export (`.pt2`) that knows what it was written from."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export import Dim, ExportedProgram

from qat.contexts import quiet
from qat.export.file_network import FileNetwork
from qat.export.onnx.example_inputs import ExampleInputs, Examples, FreeAxes, bind, without_constants
from qat.export.onnx.trials import run_twice
from qat.export.outputs import named_outputs
from qat.export.pt2e.build import to_pt2e
from qat.export.verification import DamagedFileError
from qat.files import write_atomically
from qat.integer.fingerprint import fingerprint
from qat.reading.malformed import malformed
from qat.reading.program_file import read_program
from qat.torch_private import quantized_decomposed, tree_leaves, tree_map
from qat.version import version

RECORD = "qat.json"
"""The member of the archive that says what the file was written from."""


def export_pt2e(
    integer: nn.Module, example_inputs: Examples, path: str | Path, dynamic: FreeAxes | None = None
) -> None:
    """Write `to_pt2e(integer)` as a program of torch.export, whole or not at all.

    Args:
        integer: what `qat.convert` returned, of a network with a graph.
        example_inputs: one batch of the model's inputs: a tensor, a tuple, or a mapping of keyword arguments.
        path: the file to write.
        dynamic: input -> its free axes, as `qat.export_onnx` takes them: by default the batch, with {} none.

    Raises:
        ValueError: this is not an integer model with a graph, or it cannot run with other sizes of the free axes.
    """
    program, inputs = exported_program(integer, example_inputs, dynamic)
    tensors = [x for x in tree_leaves(tuple(inputs.values.values())) if isinstance(x, Tensor)]
    record = {
        "generator": "qat",
        "target": "pt2e",
        "example_shapes": [list(x.shape) for x in tensors],
        "free_axes": None if dynamic is None else inputs.axes,
        "model_sha256": fingerprint(integer),
        "versions": {"qat": version(), "torch": torch.__version__},
    }
    content = io.BytesIO()
    torch.export.save(program, content, extra_files={RECORD: json.dumps(record)})
    write_atomically(path, content.getvalue())


def exported_program(
    integer: nn.Module, example_inputs: Examples, dynamic: FreeAxes | None = None
) -> tuple[ExportedProgram, ExampleInputs]:
    """`to_pt2e(integer)` as a program, and the inputs that it was traced with.

    Raises:
        ValueError: as `export_pt2e`.
    """
    model, inputs = traceable(to_pt2e(integer), example_inputs, dynamic)

    def free(value: Any, name: Any) -> Any:
        return dict.fromkeys(inputs.axes.get(name, {}), Dim.DYNAMIC) if isinstance(value, Tensor) else None

    shapes = tuple(tree_map(free, value, inputs.names[name]) for name, value in inputs.values.items())
    try:
        with quiet(["torch.export"]):
            program = torch.export.export(model, inputs.trial(0), dynamic_shapes=shapes, strict=False)
    except (RuntimeError, ValueError) as error:
        free_axes = any(inputs.axes.values())
        cannot = "leave the sizes of inputs open" if free_axes else f"trace {type(integer).__name__}"
        remedy = "dynamic={} for a file with the shapes of the example" if free_axes else "target='portable'"
        raise ValueError(
            f"torch.export cannot {cannot} ({str(error).strip().splitlines()[0]}): write {remedy}."
        ) from error
    return program, inputs


def traceable(
    module: fx.GraphModule, example_inputs: Examples, dynamic: FreeAxes | None
) -> tuple[fx.GraphModule, ExampleInputs]:
    """The module with constant arguments put in, and its example inputs, on which it has run.

    Raises:
        ValueError: it cannot run on them, or with other sizes of the free axes.
    """
    model, inputs = without_constants(module, bind(module.graph, example_inputs, dynamic))
    return model, run_twice(model, inputs)[0]


def load_program(path: str | Path) -> ExportedProgram:
    """The program in a file.

    Raises:
        DamagedFileError: the file holds none that can be read.
    """
    quantized_decomposed()
    try:
        with quiet():
            return read_program(path)
    except ValueError as error:
        raise DamagedFileError(str(error)) from error


def record_of_file(path: str | Path) -> dict[str, Any]:
    """What the file says of itself; empty if another tool wrote it.

    Raises:
        DamagedFileError: it is not an archive, or its record cannot be read.
    """
    with malformed(path, "is not a program of torch.export", "write it again", DamagedFileError):
        with zipfile.ZipFile(path) as archive:
            names = [name for name in archive.namelist() if name.endswith(f"extra/{RECORD}")]
            found: dict[str, Any] = json.loads(archive.read(names[0])) if names else {}
        return found


def is_pt2e(path: str | Path) -> bool:
    """Whether `export_pt2e` wrote this file."""
    return zipfile.is_zipfile(path) and record_of_file(path).get("generator") == "qat"


class Pt2eNetwork(FileNetwork):
    """A `.pt2` file as a module, run by torch. Arguments as those of `FileNetwork`.

    Raises:
        DamagedFileError: the file holds no program.
    """

    def __init__(self, path: str | Path, threads: int | None = None) -> None:
        super().__init__(path, threads)
        self.program = load_program(path).module(check_guards=False)

    def outputs(self, inputs: tuple[Any, ...]) -> list[Tensor]:
        """All outputs of a batch."""
        with _threads(self.threads), torch.no_grad():
            return list(named_outputs(self.program(*inputs)).values())

    def train(self, mode: bool = True) -> Pt2eNetwork:
        """Only set the flag: a program has no training mode."""
        self.training = mode
        return self


@contextmanager
def _threads(number: int | None) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(number or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)
