"""Checkpoints of torch and Lightning: read without executing anything, after their checksums are compared."""

from __future__ import annotations

import io
import os
import pickle
import pickletools
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any, BinaryIO

import torch
from torch import Tensor

from qat.reading.archive import ZIP_START, check_archive
from qat.reading.bounds import check_bytes, check_nesting
from qat.reading.malformed import malformed, reason
from qat.torch_private import TENSOR_FROM_PARTS

REFUSED_CALLS = ("builtins bytearray", "__builtin__ bytearray")
"""Calls that torch would allow in a checkpoint, and that only serve to fill the memory."""


def read_checkpoint(path: Path) -> Any:
    """The content of a .ckpt, .pt or .pth file: tensors on the CPU, and plain values.

    Code that a file could contain is never executed. In zip archives, which torch writes since 1.6, every checksum is
    compared. Older files have none.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is damaged, holds objects, or unpacks to more than a file of its size can hold.
    """
    with (
        path.open("rb") as file,
        malformed(path, "is not a checkpoint", "give a .ckpt, .pt or .pth file, or write it again"),
    ):
        try:
            return read_content(file)
        except pickle.UnpicklingError as error:
            found = str(error).rpartition("WeightsUnpickler error:")[2].partition(" Please use")[0]
            raise ValueError(
                f"checkpoint {path} holds pickled objects, which could run code and are never loaded "
                f"({reason(ValueError(found))}): keep them out of it, self.save_hyperparameters(ignore=[...]), or save its "
                "weights alone, safetensors.torch.save_file(model.state_dict(), 'weights.safetensors')."
            ) from error


def read_content(file: BinaryIO) -> Any:
    """The content of an open file, as `read_checkpoint` reads it.

    Raises:
        pickle.UnpicklingError: it holds objects.
        ValueError: it is damaged, or unpacks to more than a file of its size can hold; others for one that is not a checkpoint.
    """
    size = _check(file)
    loaded = torch.load(file, map_location="cpu", weights_only=True)
    _check_tensors(loaded, size)
    return loaded


def read_without_objects(path: Path) -> Any:
    """The content of an archive that may hold objects: inert ones take their place. Nothing in it is executed, either.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is damaged.
    """
    with path.open("rb") as file, malformed(path, "is not a checkpoint", "write it again"):
        size = _check(file, old=False)
        inert = SimpleNamespace(Unpickler=_InertUnpickler, __name__="inert")
        loaded = torch.load(file, map_location="cpu", weights_only=False, pickle_module=inert)
        _check_tensors(loaded, size)
    return loaded


def check_kinds(path: Path, loaded: Mapping[str, Any], expected: Mapping[str, Tensor]) -> None:
    """Check that floating-point tensors get floating-point values: torch would silently copy integers or complex numbers.

    Args:
        path: of the file, for the message.
        loaded: name -> tensor, as the file has it.
        expected: name -> tensor, as the model has it.

    Raises:
        ValueError: the file has numbers of another kind under a name.
    """
    for name, tensor in loaded.items():
        wanted = expected.get(name)
        if wanted is None or not isinstance(tensor, Tensor) or not wanted.is_floating_point():
            continue
        if not tensor.is_floating_point():
            kind = str(tensor.dtype).removeprefix("torch.")
            raise ValueError(
                f"checkpoint {path} has {name!r} in {kind}, and the model in floating point: give one that holds floats."
            )


def check_container(path: Path) -> None:
    """Check the checksums of a checkpoint, and what it unpacks to, without reading what is in it.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is damaged.
    """
    with path.open("rb") as file, malformed(path, "is not a checkpoint", "write it again"):
        _check(file)


def _check(file: BinaryIO, old: bool = True) -> int:
    """Check the container, and return the size of the file. old: whether it may be a file of torch before 1.6, no archive."""
    if file.read(4) == ZIP_START or not old:
        pickles = io.BytesIO(check_archive(file))
    else:
        file.seek(0)
        pickles = io.BytesIO(file.read(1 << 26))
    for _ in range(4):  # files of older versions start with three short pickles
        if not pickles.getbuffer()[pickles.tell() :]:
            break
        for code, value, _ in pickletools.genops(pickles):
            if code.name == "GLOBAL" and value in REFUSED_CALLS:
                raise ValueError(f"it calls {str(value).replace(' ', '.')}")
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    return size


def _check_tensors(loaded: Any, file_bytes: int) -> None:
    """Check that no tensor declares more elements than the file holds."""
    total = 0
    for value in check_nesting(loaded):
        if isinstance(value, Tensor):
            if value.layout is not torch.strided or value.is_nested or value.device.type != "cpu":
                raise ValueError("it has a tensor that is sparse, nested, or without values")
            total += value.numel() * value.element_size()
            check_bytes(total, file_bytes)


class _Inert:
    """Stands for an object in a checkpoint, whatever its class is."""

    def __init__(self, *_: Any, **__: Any) -> None: ...

    def __call__(self, *_: Any, **__: Any) -> type[_Inert]:
        return _Inert

    def __setstate__(self, _: Any) -> None: ...

    def append(self, _: Any) -> None: ...

    def extend(self, _: Any) -> None: ...

    def __setitem__(self, *_: Any) -> None: ...

    def __hash__(self) -> int:
        return id(self)


class _Rebuild(_Inert):
    """A function of torch that makes a tensor from its parts; a file can call it, but not change it."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __call__(self, *parts: Any, **_: Any) -> Any:
        return TENSOR_FROM_PARTS[self.name](*parts)


class _InertUnpickler(pickle.Unpickler):
    """Knows tensors and ordered dicts; every other name that a file imports is `_Inert`."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if module == "torch" and (name == "Size" or isinstance(getattr(torch, name, None), torch.dtype)):
            return getattr(torch, name)
        if module == "torch._utils" and name in TENSOR_FROM_PARTS:
            return _Rebuild(name)
        return _Inert() if name == "getattr" else _Inert  # a nested class is found by calling getattr
