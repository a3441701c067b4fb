"""Run ExecuTorch programs in ExecuTorch's own runtime on the CPU."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from qat.export.executorch.program import runtime
from qat.export.fixed_batch import FixedBatchNetwork
from qat.export.verification import DamagedFileError
from qat.reading.malformed import malformed


class ExecutorchNetwork(FixedBatchNetwork):
    """A `.pte` file as a module, run by ExecuTorch.

    Args:
        path: the file.
        threads: not used: the runtime's Python interface chooses by itself.

    Raises:
        FileNotFoundError: there is no such file.
        DamagedFileError: ExecuTorch refuses it.
        ImportError: ExecuTorch is not installed.
    """

    def __init__(self, path: str | Path, threads: int | None = None) -> None:
        super().__init__(path, threads)
        content, executorch = Path(path).read_bytes(), runtime()
        with malformed(path, "is refused by ExecuTorch", "write it again", DamagedFileError):
            self.program = executorch.load_program(content)
            self.method = self.program.load_method("forward")
        about = self.method.metadata
        self.sizes = [about.input_tensor_meta(i).sizes()[0] for i in range(about.num_inputs())]

    def run(self, tensors: list[Tensor]) -> Sequence[Tensor]:
        """The outputs of a batch of the file's size."""
        found: Sequence[Tensor] = self.method.execute(tensors)
        return found
