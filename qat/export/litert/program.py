"""An integer model as a LiteRT file, by litert-torch."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import nn

from qat.contexts import quiet
from qat.export.onnx.example_inputs import Examples
from qat.export.pt2e.build import to_pt2e
from qat.export.pt2e.program import traceable
from qat.files import write_atomically

MISSING = "litert-torch is not installed: pip install 'qat-lightning[litert]', or pip install litert-torch."


def export_litert(integer: nn.Module, example_inputs: Examples, path: str | Path) -> None:
    """Write an integer model as a LiteRT file (`.tflite`), whole or not at all.

    Inputs that the network quantizes first are int8 codes, whose scale and zero-point the file holds; outputs are floats.
    Shapes are those of the example.

    Args:
        integer: what `qat.convert` returned, of a network with a graph.
        example_inputs: one batch of the model's inputs: a tensor, a tuple, or a mapping of keyword arguments.
        path: the file to write.

    Raises:
        ValueError: this is not an integer model with a graph, or litert-torch cannot convert it.
        ImportError: litert-torch is not installed.
    """
    write_atomically(path, converted(integer, example_inputs))


def converted(integer: nn.Module, example_inputs: Examples) -> bytes:
    """The file in memory.

    Raises:
        ValueError, ImportError: as `export_litert`.
    """
    model, inputs = traceable(to_pt2e(integer, for_litert=True), example_inputs, dynamic={})
    with quiet(["root", "litert_torch", "torch.export"]):
        litert_torch, configuration = _litert_torch()
        try:
            found = litert_torch.convert(model.eval(), inputs.trial(0), quant_config=configuration)
            with tempfile.TemporaryDirectory() as folder:
                found.export(str(Path(folder) / "model.tflite"))
                return (Path(folder) / "model.tflite").read_bytes()
        except Exception as error:  # a compiler may raise anything
            text = " ".join(str(error).split())[:200]
            raise ValueError(f"litert-torch cannot convert {type(integer).__name__}: {text}.") from error


def _litert_torch() -> tuple[Any, Any]:
    """The package, and a configuration by which quantized_decomposed operations become static int8 kernels."""
    try:
        import litert_torch
        from litert_torch.quantize.pt2e_quantizer import PT2EQuantizer, get_symmetric_quantization_config
        from litert_torch.quantize.quant_config import QuantConfig
    except ModuleNotFoundError as error:
        raise ImportError(MISSING) from error
    quantizer = PT2EQuantizer().set_global(get_symmetric_quantization_config())
    return litert_torch, QuantConfig(pt2e_quantizer=quantizer)


def int8_codes(x: torch.Tensor, scale: float, zero_point: int) -> torch.Tensor:
    """The codes of a float input, for a file whose input is int8."""
    return (torch.round(x / scale) + zero_point).clamp(-128, 127).to(torch.int8)
