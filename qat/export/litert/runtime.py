"""Run LiteRT files in LiteRT's interpreter on the CPU, and read which kernels they use."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from qat.export.fixed_batch import FixedBatchNetwork
from qat.export.litert.program import MISSING, int8_codes
from qat.export.verification import DamagedFileError
from qat.reading.malformed import malformed


class LitertNetwork(FixedBatchNetwork):
    """A `.tflite` file as a module, run by LiteRT. Arguments as those of `FileNetwork`.

    Raises:
        DamagedFileError: LiteRT refuses the file.
        ImportError: LiteRT is not installed.
    """

    def __init__(self, path: str | Path, threads: int | None = None) -> None:
        super().__init__(path, threads)
        content, interpreter = Path(path).read_bytes(), _interpreter()
        with malformed(path, "is refused by LiteRT", "write it again", DamagedFileError):
            self.interpreter = interpreter(model_content=content, num_threads=threads)
            self.interpreter.allocate_tensors()
        self.inputs, self.of_outputs = self.interpreter.get_input_details(), self.interpreter.get_output_details()
        self.sizes = [int(i["shape"][0]) for i in self.inputs]

    def run(self, tensors: list[Tensor]) -> list[Tensor]:
        """The outputs of a batch of the file's size."""
        for x, about in zip(tensors, self.inputs, strict=True):
            given = int8_codes(x, *about["quantization"]) if about["dtype"] == np.int8 else x
            self.interpreter.set_tensor(about["index"], given.numpy().astype(about["dtype"]))
        self.interpreter.invoke()
        return [self._output(about) for about in self.of_outputs]

    def _output(self, about: dict[str, Any]) -> Tensor:
        value = torch.from_numpy(self.interpreter.get_tensor(about["index"]))
        scale, zero_point = about["quantization"]
        return (value.float() - zero_point) * scale if about["dtype"] == np.int8 else value


def operators(content: bytes) -> dict[str, int]:
    """How often each operator occurs in a file with each type of its first input, "CONV_2D (int8)", most frequent first."""
    _interpreter()
    from ai_edge_litert import schema_py_generated as schema

    model = schema.ModelT.InitFromPackedBuf(content, 0)
    kinds = {number: name for name, number in vars(schema.BuiltinOperator).items() if isinstance(number, int)}
    types = {number: name.lower() for name, number in vars(schema.TensorType).items() if isinstance(number, int)}
    graph = model.subgraphs[0]
    found = Counter(
        f"{kinds[model.operatorCodes[o.opcodeIndex].builtinCode]} ({types[graph.tensors[o.inputs[0]].type]})"
        for o in graph.operators
    )
    return dict(found.most_common())


def _interpreter() -> Any:
    try:
        from ai_edge_litert.interpreter import Interpreter
    except ModuleNotFoundError as error:
        raise ImportError(MISSING) from error
    return Interpreter
