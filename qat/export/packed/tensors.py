"""Tensors in a file: codes are packed, equal tensors are stored once, constant ones as one number."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from math import prod
from typing import Any

import torch
from torch import Tensor

from qat.export.packed.bits import pack, unpack

Index = dict[str, Any]
"""What the manifest says of the tensors: {"codes": {name: {"bits", "signed", "shape", "levels"}}, "same": {name: name},
"constant": [[dtype, shape, value, [name, ...]], ...]}. All other tensors are in the file as they are, under their names."""


class TensorWriter:
    """Collects tensors under names of the caller's choice; a second tensor with the same content is only another name."""

    def __init__(self) -> None:
        self.stored: dict[str, Tensor] = {}
        self._codes: dict[str, dict[str, Any]] = {}
        self._same: dict[str, str] = {}
        self._constant: dict[tuple[Any, ...], list[str]] = {}
        self._seen: dict[bytes, str] = {}

    def index(self) -> Index:
        """What a reader must know."""
        constant = [[dtype, list(shape), value, names] for (dtype, shape, value), names in self._constant.items()]
        return {"codes": self._codes, "same": self._same, "constant": constant}

    def add(self, name: str, tensor: Tensor) -> str:
        """Store a tensor as it is. Returns its name."""
        tensor = tensor.detach().cpu().contiguous()
        dtype, shape = str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape)
        if (value := _constant_value(tensor)) is not None:
            self._constant.setdefault((dtype, shape, value), []).append(name)
            return name
        return self._once(name, tensor, (dtype, shape))

    def add_codes(self, name: str, codes: Tensor, bits: int) -> str:
        """Store codes that need at most `bits` bits; fewer if few different ones occur. Returns their name.

        Args:
            name: of the caller's choice.
            codes: whole numbers of any shape, all in the range of int8 or all in that of uint8.
            bits: the bits of their grid.
        """
        codes = codes.detach().cpu().to(torch.int16).contiguous()
        signed = bool(codes.numel()) and int(codes.min()) < 0
        entry: dict[str, Any] = {"bits": bits, "signed": signed, "shape": list(codes.shape)}
        levels = torch.unique(codes)
        if (fewer := max(1, (len(levels) - 1).bit_length())) < bits:
            entry |= {"bits": fewer, "levels": levels.tolist()}
            packed = pack(torch.searchsorted(levels, codes), fewer)
        else:
            packed = pack(codes, bits)
        self._once(name, packed, tuple(map(str, entry.items())))
        self._codes[name] = entry
        return name

    def _once(self, name: str, tensor: Tensor, kind: tuple[Any, ...]) -> str:
        content = tensor.reshape(-1).view(torch.uint8).numpy().tobytes() if tensor.numel() else b""
        digest = hashlib.sha256(repr(kind).encode() + content).digest()
        first = self._seen.setdefault(digest, name)
        if first == name:
            self.stored[name] = tensor
        else:
            self._same[name] = first
        return name


class TensorReader:
    """The tensors of a file by name.

    Raises:
        ValueError: the index does not fit the tensors.
    """

    def __init__(self, stored: Mapping[str, Tensor], index: Index) -> None:
        self._stored, self._codes, self._same = stored, index["codes"], index["same"]
        self._constant: dict[str, tuple[torch.dtype, list[int], Any]] = {}
        budget = max(1 << 26, 4 * sum(t.numel() * t.element_size() for t in stored.values()))
        for dtype, shape, value, names in index["constant"]:
            kind = getattr(torch, dtype)
            budget -= prod(shape) * kind.itemsize * len(names)
            if not isinstance(kind, torch.dtype) or min(shape, default=0) < 0 or budget < 0:
                raise ValueError(f"a constant {dtype} of shape {shape} is impossible")
            self._constant |= dict.fromkeys(names, (kind, shape, value))
        self.names = {*self._constant, *self._codes, *self._same, *stored}

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor or of codes."""
        if name in self._constant:
            return tuple(self._constant[name][1])
        return tuple(self._codes[name]["shape"] if name in self._codes else self[name].shape)

    def __getitem__(self, name: str) -> Tensor:
        """The tensor; of codes: int8, or uint8 if none is negative. A new one in each call, unless it is stored as it is."""
        if name in self._constant:
            dtype, shape, value = self._constant[name]
            return torch.full(shape, value, dtype=dtype)
        if name not in self.names:
            raise ValueError(f"there is no tensor {name!r}")
        tensor = self._stored[self._same.get(name, name)]
        if name not in self._codes:
            return tensor.clone() if name in self._same else tensor
        entry = self._codes[name]
        levels = entry.get("levels")
        if levels is None:
            return unpack(tensor, entry["bits"], entry["shape"], entry["signed"])
        indices = unpack(tensor, entry["bits"], entry["shape"], signed=False)
        return torch.tensor(levels, dtype=torch.int8 if entry["signed"] else torch.uint8)[indices.long()]


def _constant_value(tensor: Tensor) -> bool | int | float | None:
    """The value that every element has, bit for bit; None if there is none, if JSON cannot write it, and for -0.0.

    As a key, -0.0 equals 0.0.
    """
    if not tensor.numel() or tensor.is_complex() or tensor.element_size() > 8:
        return None
    first = tensor.reshape(-1)[0]
    rows = tensor.reshape(-1).view(torch.uint8).reshape(tensor.numel(), -1)
    value = first.item()
    if not bool((rows == rows[:1]).all()) or value != value or value in (float("inf"), float("-inf")):
        return None
    return None if str(value) == "-0.0" else value
