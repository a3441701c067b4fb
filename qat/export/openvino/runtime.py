"""Run ONNX files in OpenVINO on the CPU."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from qat.export.file_network import FileNetwork
from qat.export.onnx.onnx_file import read_onnx
from qat.export.onnx.runtime import feeds
from qat.export.verification import DamagedFileError
from qat.reading.malformed import reason


class OpenVinoSession:
    """A file compiled by OpenVINO. Float operations are computed in float32, on processors with bfloat16, too.

    Args:
        content: the bytes of the file.
        threads: number of threads; None lets OpenVINO choose.

    Raises:
        ImportError: OpenVINO is not installed.
        DamagedFileError: OpenVINO refuses the file.
    """

    def __init__(self, content: bytes, threads: int | None = None) -> None:
        openvino = _openvino()
        config = {"INFERENCE_PRECISION_HINT": "f32", **({} if threads is None else {"INFERENCE_NUM_THREADS": threads})}
        try:
            core = openvino.Core()
            self.compiled = core.compile_model(core.read_model(content), "CPU", config)
        except RuntimeError as error:
            raise DamagedFileError(f"the file is refused by OpenVINO: {reason(error)}.") from error

    def get_inputs(self) -> Sequence[Any]:
        """The inputs; each has a `name`."""
        return [_Named(i.any_name) for i in self.compiled.inputs]

    def run(self, names: Sequence[str] | None, inputs: Mapping[str, Any]) -> list[Any]:
        """The named outputs, all if there are no names, as arrays."""
        results = self.compiled(dict(inputs))
        outputs = self.compiled.outputs if names is None else [self.compiled.output(name) for name in names]
        return [np.array(results[output]) for output in outputs]

    def operators(self) -> dict[str, int]:
        """How often each kind of layer is executed, with its precision: "Convolution (u8)", most frequent first."""
        found: Counter[str] = Counter()
        for node in self.compiled.get_runtime_model().get_ops():
            info = node.get_rt_info()
            kind, precision = (info[key].astype(str) for key in ("layerType", "runtimePrecision"))
            if kind not in ("Const", "Input", "Output"):
                found[f"{kind} ({precision})"] += 1
        return dict(found.most_common())


class _Named:
    def __init__(self, name: str) -> None:
        self.name = name


def operators(path: str | Path) -> dict[str, int]:
    """How often each kind of layer is executed in what OpenVINO makes of a file, with its precision."""
    return OpenVinoSession(read_onnx(path).SerializeToString()).operators()


class OpenVinoNetwork(FileNetwork):
    """An ONNX file as a module, run by OpenVINO. Arguments as those of `FileNetwork`.

    Raises:
        ImportError: OpenVINO is not installed.
    """

    def __init__(self, path: str | Path, threads: int | None = None) -> None:
        super().__init__(path, threads)
        self.session = OpenVinoSession(read_onnx(path).SerializeToString(), threads)

    def outputs(self, inputs: tuple[Any, ...]) -> list[Tensor]:
        """All outputs of a batch."""
        return [torch.from_numpy(array) for array in self.session.run(None, feeds(self.session, inputs))]


def _openvino() -> Any:
    try:
        import openvino
    except ModuleNotFoundError:
        raise ModuleNotFoundError(
            "OpenVINO is not installed: pip install 'qat-lightning[openvino]', or pip install openvino."
        ) from None
    return openvino
