"""ONNX Runtime's own post-training quantization, from outside: what people reach without this library."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from numpy.typing import NDArray
from torch import Tensor, nn

from qat.contexts import quiet
from qat.export.onnx.float_network import export_float_onnx
from qat.export.runtime import feeds, session
from qat.files import write_atomically
from qat.transform.calibrate import arguments

METHODS = ("MinMax", "Entropy", "Percentile")


@dataclass(frozen=True)
class QuantizeStatic:
    """`onnxruntime.quantization.quantize_static` of the float network: QDQ, uint8 activations, int8 weights per channel.

    Always W8A8, with its own ranges and its own choice of what to quantize. BatchNorm is folded and shapes are inferred
    first, as its documentation advises.

        path = QuantizeStatic()(network, batches, folder)

    Args:
        calibration: how it finds ranges: MinMax, Entropy or Percentile.
        file: name of the file that it writes.

    Raises:
        ValueError: there is no such calibration.
    """

    calibration: str = "MinMax"
    file: str = "quantize_static.onnx"

    def __post_init__(self) -> None:
        if self.calibration not in METHODS:
            raise ValueError(f"calibration={self.calibration!r} does not exist: write {', '.join(METHODS)}.")

    def __call__(self, model: nn.Module, batches: Iterable[Any], folder: str | Path) -> Path:
        """Write the quantized file into `folder`, whole or not at all, and return its path.

        Args:
            model: the float network. batches: tensors, or sequences of arguments that begin with them.

        Raises:
            ValueError: there are no batches, or the network is called with keywords.
        """
        from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static
        from onnxruntime.quantization.shape_inference import quant_pre_process

        inputs = [tuple(x.cpu() for x in _tensors(model, batch)) for batch in batches]
        if not inputs:
            raise ValueError("there is nothing to calibrate with: batches is empty.")
        with tempfile.TemporaryDirectory() as workshop, quiet():
            source, prepared, result = (Path(workshop) / f"{name}.onnx" for name in ("float", "prepared", "quantized"))
            export_float_onnx(copy.deepcopy(model).cpu(), tuple(x[:1] for x in inputs[0]), source)
            quant_pre_process(str(source), str(prepared))
            quantize_static(
                str(prepared),
                str(result),
                _Reader([feeds(session(prepared), batch) for batch in inputs]),
                quant_format=QuantFormat.QDQ,
                per_channel=True,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
                calibrate_method=CalibrationMethod[self.calibration],
            )
            return write_atomically(Path(folder) / self.file, result.read_bytes())


class _Reader:
    """Hands out the calibration batches, one a call, then None: what `quantize_static` wants to be given."""

    def __init__(self, batches: list[dict[str, NDArray[Any]]]) -> None:
        self.batches = iter(batches)

    def get_next(self) -> dict[str, NDArray[Any]] | None:
        return next(self.batches, None)


def _tensors(model: nn.Module, batch: Any) -> tuple[Tensor, ...]:
    if isinstance(batch, dict):
        raise ValueError(
            "a network that is called with keywords cannot be exported to ONNX: give batches of positional tensors."
        )
    return arguments(model, batch)
