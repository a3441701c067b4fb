"""`qat.save_quantized`: a quantized network as packed codes in a folder."""

from __future__ import annotations

import textwrap
import warnings
from pathlib import Path
from typing import Any

from torch import nn

from qat.arguments import as_path, check_network
from qat.export.packed.folder import write_folder
from qat.export.packed.integer import describe_integer
from qat.export.packed.prepared import describe_prepared, describe_weight_only
from qat.export.packed.tensors import TensorWriter
from qat.integer.integer_model import IntegerModel
from qat.integer.weight_only import StoredWeight
from qat.quantizers import Mode
from qat.structure import Names, NotPlainError
from qat.transform import quantizers
from qat.transform.record import PreparedRecord, record_of


def save_quantized(model: nn.Module, folder: str | Path) -> Path:
    """Write a quantized network into a folder, each weight in the bits of its codes; `qat.load_quantized` reads it.

    A prepared network comes back prepared, with the same codes and outputs, and goes on learning: its float weights are then
    those of the codes. An integer model comes back as one. What has no quantizer is stored as it is, tied weights once.

        qat.save_quantized(prepared, "folder")
        prepared = qat.load_quantized("folder")                # networks of torch.nn, torchvision and qat
        prepared = qat.load_quantized("folder", MyNetwork())   # networks of your own

    Args:
        model: what `qat.prepare` made, calibrated or trained, or what `qat.convert` made.
        folder: is made, if it is missing. Its files `manifest.json` and `packed-*.safetensors` are replaced, at once.

    Returns:
        `folder`.

    Raises:
        ValueError: the network is not quantized, has no ranges yet, or contains what no file can describe.
        FileExistsError: `folder` is a file.

    Warns:
        UserWarning: weights are stored in float, because codes alone do not suffice to go on learning.
    """
    check_network(model)
    folder = as_path(folder, "folder")
    if folder.is_file():
        raise FileExistsError(
            f"{folder} is a file: write the name of a folder, new or one that qat.save_quantized wrote."
        )
    writer = TensorWriter()
    manifest = _described(model, writer)
    folder.mkdir(parents=True, exist_ok=True)
    return write_folder(folder, {**manifest, "tensors": writer.index()}, writer.stored)


def _described(model: nn.Module, writer: TensorWriter) -> dict[str, Any]:
    if isinstance(model, IntegerModel):
        try:
            return {"kind": "integer", **describe_integer(model, Names(), writer)}
        except NotPlainError as error:
            raise ValueError(
                f"the integer model cannot be written ({error}): save the prepared network, qat.save_quantized(prepared, "
                "folder), and convert what is loaded."
            ) from error
    record = record_of(model)
    if record is None:
        raise ValueError(_not_prepared(model))
    _check_ready(model)
    if any(isinstance(module, StoredWeight) for module in model.modules()):
        return {"kind": "weight_only", **describe_weight_only(model, record, writer)}
    return {"kind": "prepared", **_prepared(model, record, writer)}


def _prepared(model: nn.Module, record: PreparedRecord, writer: TensorWriter) -> dict[str, Any]:
    manifest, masters = describe_prepared(model, record, writer)
    if masters.kept:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in masters.kept.items())
        warnings.warn(
            f"{len(masters.kept)} quantized weights are stored in float ({textwrap.shorten(reasons, 400)}); without training "
            "them further, save qat.convert(model), whose weights are codes.",
            stacklevel=4,
        )
    return manifest


def _check_ready(model: nn.Module) -> None:
    for name, quantizer in quantizers(model).items():
        if not quantizer.ready or quantizer.mode is not Mode.QUANTIZE:
            raise ValueError(
                f"quantizer {name!r} has no range, or is switched off: call qat.calibrate(model, batches), and leave "
                "qat.mode(...), before qat.save_quantized."
            )


def _not_prepared(model: nn.Module) -> str:
    inside = [name for name, module in model.named_modules() if record_of(module) is not None]
    if inside:
        return (
            f"{type(model).__name__} contains a prepared network, {inside[0]!r}, and is none itself: save that one, "
            f"qat.save_quantized(model.{inside[0]}, folder)."
        )
    return (
        f"{type(model).__name__} was not made by qat.prepare or qat.convert: prepare and calibrate it first. (Float networks "
        "are saved with torch.save(model.state_dict(), path).)"
    )
