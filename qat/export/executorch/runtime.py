"""Run ExecuTorch programs in ExecuTorch's own runtime on the CPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor, nn

from qat.contexts import quiet
from qat.export.executorch.program import MISSING
from qat.export.fixed_batch import run_in_parts
from qat.export.verification import DamagedFileError
from qat.reading.malformed import malformed


class ExecutorchNetwork(nn.Module):
    """A `.pte` file as a module: tensors in, and the file's output out, or a tuple of several.

    Args:
        path: the file.
        threads: not used: the runtime's Python interface chooses by itself.

    Raises:
        FileNotFoundError: there is no such file.
        DamagedFileError: ExecuTorch refuses it.
        ImportError: ExecuTorch is not installed.
    """

    def __init__(self, path: str | Path, threads: int | None = None) -> None:
        super().__init__()
        self.path, self.threads = str(path), threads
        content = Path(path).read_bytes()
        runtime = _runtime()
        with malformed(path, "is refused by ExecuTorch", "write it again", DamagedFileError):
            self.program = runtime.load_program(content)
            self.method = self.program.load_method("forward")
        about = self.method.metadata
        self.sizes = [about.input_tensor_meta(i).sizes()[0] for i in range(about.num_inputs())]

    @property
    def size_bytes(self) -> int:
        """Size of the file on disk."""
        return Path(self.path).stat().st_size

    @property
    def fixed_batch(self) -> int:
        """The batch that the file was written with."""
        return int(self.sizes[0])

    def outputs(self, inputs: tuple[Any, ...]) -> list[Tensor]:
        """All outputs of a batch of any size."""
        return run_in_parts(self.method.execute, inputs, self.sizes)

    def forward(self, *inputs: Tensor) -> Tensor | tuple[Tensor, ...]:
        results = tuple(self.outputs(inputs))
        return results[0] if len(results) == 1 else results

    def __deepcopy__(self, memo: object) -> ExecutorchNetwork:
        return ExecutorchNetwork(self.path, self.threads)


def _runtime() -> Any:
    try:
        with quiet(["root", "executorch"]):
            import executorch.kernels.quantized  # noqa: F401  (registers its kernels with the runtime)
            from executorch.runtime import Runtime
    except ModuleNotFoundError as error:
        raise ImportError(MISSING) from error
    return Runtime.get()
