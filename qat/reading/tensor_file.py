"""safetensors files, with a checksum in those that this project writes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from qat.files import write_atomically
from qat.reading.malformed import malformed

CHECKSUM = "qat.sha256"
"""The metadata entry that holds the sha256 of all tensors and of the other entries."""


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Write contiguous CPU tensors that share no memory, with a checksum; a reader never sees a partial file.

    Raises:
        OSError: the file cannot be written; the old one, if any, is intact.
    """
    entries = dict(metadata or {})
    entries[CHECKSUM] = _checksum(tensors, entries)
    write_atomically(path, _with_sorted_metadata(save(dict(tensors), metadata=entries)))


def read_tensors(path: Path, needs_checksum: bool = False) -> dict[str, Tensor]:
    """The tensors of a file. What its header declares is compared with its size, and the checksum with its bytes.

    Args:
        path: the file.
        needs_checksum: refuse a file without a checksum, because this project wrote it.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is damaged.
    """
    path.stat()  # a missing file is an error of the operating system, with its name
    with malformed(path, "is not a safetensors file", "write it again"):
        with safe_open(path, framework="pt") as file:
            metadata = dict(file.metadata() or {})
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
        recorded = metadata.pop(CHECKSUM, None)
        if recorded is None and needs_checksum:
            raise ValueError("it has no checksum")
        if recorded is not None and recorded != _checksum(tensors, metadata):
            raise ValueError("its checksum does not fit")
    return tensors


def _with_sorted_metadata(content: bytes) -> bytes:
    """The file with its metadata in alphabetical order, so that equal weights are equal files: `save` keeps no order."""
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + content[8 + length :]


def _checksum(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> str:
    digest = hashlib.sha256(json.dumps(metadata, sort_keys=True).encode())
    for name in sorted(tensors):
        tensor = tensors[name].contiguous()
        digest.update(f"\0{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode(errors="surrogatepass"))
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
