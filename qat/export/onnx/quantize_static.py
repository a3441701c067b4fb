"""ONNX Runtime's own post-training quantization: the baseline that needs nothing of this library but its float export."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from numpy.typing import NDArray
from torch import Tensor, nn

from qat.arguments import check_network
from qat.capture import copy_model
from qat.contexts import quiet
from qat.export.onnx.float_network import export_float_onnx
from qat.export.onnx.runtime import feeds, session
from qat.files import write_atomically
from qat.torch_private import tree_map_only
from qat.transform.batches import positional_arguments
from qat.transform.calibrate import list_of_batches

METHODS = ("MinMax", "Entropy", "Percentile")


@dataclass(frozen=True)
class QuantizeStatic:
    """`onnxruntime.quantization.quantize_static` of the float network: QDQ, uint8 activations, int8 weights per channel.

    Always W8A8, with its own ranges and its own choice of what to quantize. BatchNorm is folded and shapes are inferred
    first, as its documentation advises.

        path = QuantizeStatic()(network, batches, folder)

    Args:
        calibration: how to find ranges: MinMax, Entropy or Percentile.
        file: name of the file to write.

    Raises:
        ValueError: the calibration is unknown.
    """

    calibration: str = "MinMax"
    file: str = "quantize_static.onnx"

    def __post_init__(self) -> None:
        if self.calibration not in METHODS:
            raise ValueError(f"calibration={self.calibration!r} is unknown: write one of {', '.join(METHODS)}.")

    def __call__(self, model: nn.Module, batches: Iterable[Any], folder: str | Path) -> Path:
        """Write the quantized file into `folder`, whole or not at all, and return its path.

        Args:
            model: the float network; it is not changed.
            batches: tensors, or sequences that begin with the network's arguments.
            folder: the folder to write to; it is created if it does not exist.

        Raises:
            ValueError: `model` is not a network, there are no batches, or a batch lacks an argument of the network.
        """
        check_network(model)
        inputs = [
            tree_map_only(Tensor, lambda x: x.cpu(), positional_arguments(model, batch))
            for batch in list_of_batches(batches)
        ]
        path = Path(folder) / self.file
        with tempfile.TemporaryDirectory() as temporary:
            source = Path(temporary) / "float.onnx"
            export_float_onnx(
                copy_model(model).cpu(), tree_map_only(Tensor, lambda x: x[:1] if x.ndim else x, inputs[0]), source
            )
            quantize_file_statically(source, inputs, path, self.calibration)
        return path


def quantize_file_statically(
    source: str | Path, inputs: Iterable[tuple[Any, ...]], path: str | Path, calibration: str = "MinMax"
) -> None:
    """`onnxruntime.quantization.quantize_static` of a float file: QDQ, uint8 activations, int8 weights per channel.

    Args:
        source: the float file; BatchNorm is folded and shapes are inferred first.
        inputs: tensors in the order of the file's inputs, batch by batch.
        path: the file to write, whole or not at all.
        calibration: one of `METHODS`.
    """
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    with tempfile.TemporaryDirectory() as temporary, quiet(["root"]):
        prepared, result = (Path(temporary) / f"{name}.onnx" for name in ("prepared", "quantized"))
        quant_pre_process(str(source), str(prepared))
        quantize_static(
            str(prepared),
            str(result),
            _Reader([feeds(session(prepared), batch) for batch in inputs]),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            calibrate_method=CalibrationMethod[calibration],
        )
        write_atomically(Path(path), result.read_bytes())


class _Reader:
    """The data reader `quantize_static` asks for: one batch per call, then None."""

    def __init__(self, batches: list[dict[str, NDArray[Any]]]) -> None:
        self.batches = iter(batches)

    def get_next(self) -> dict[str, NDArray[Any]] | None:
        return next(self.batches, None)
