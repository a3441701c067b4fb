"""A folder with packed weights: a safetensors file, and a manifest that holds the hash of that file and its own."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors.torch import load, save
from torch import Tensor

from qat.files import write_atomically
from qat.reading.malformed import reason
from qat.structure import NotAllowedError

MANIFEST = "manifest.json"
FORMAT = "qat packed weights"
VERSION = 1
FILES = [MANIFEST, "packed-*.safetensors"]
"""Globs on the names of the files."""
_FILE = re.compile(r"packed-[0-9a-f]{16}\.safetensors")


def write_folder(folder: Path, manifest: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Path:
    """Write both files. A reader finds what was there before, or all of the new; other files stay as they are."""
    content = save(dict(tensors))
    digest = hashlib.sha256(content).hexdigest()
    file = folder / f"packed-{digest[:16]}.safetensors"
    weights = {"file": file.name, "bytes": len(content), "sha256": digest}
    whole = {"format": FORMAT, "version": VERSION, "weights": weights, **manifest}
    write_atomically(file, content)
    text = json.dumps({**whole, "sha256": _hash(whole)}, separators=(",", ":"), allow_nan=False)
    write_atomically(folder / MANIFEST, text + "\n")
    for old in folder.iterdir():
        if _FILE.fullmatch(old.name) and old != file:
            old.unlink()
    return folder


def read_folder(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """(manifest, tensors as they are stored).

    Raises:
        FileNotFoundError: there is no manifest.
        ValueError: the folder is damaged.
    """
    path = folder / MANIFEST
    if not path.is_file():
        raise FileNotFoundError(f"{folder} holds no {MANIFEST}: give a folder that qat.save_quantized wrote.")
    with damaged(folder):
        manifest = json.loads(path.read_bytes())
        if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
            raise ValueError(f"its {MANIFEST} was not written by qat")
        if manifest.get("version") != VERSION:
            raise ValueError(f"its format has version {manifest.get('version')!r}, this version of qat reads {VERSION}")
        if manifest.pop("sha256", None) != _hash(manifest):
            raise ValueError(f"its {MANIFEST} was changed")
        weights = manifest["weights"]
        if not _FILE.fullmatch(weights["file"]):
            raise ValueError(f"its {MANIFEST} names {weights['file']!r}")
        file = folder / weights["file"]
        if not file.is_file():
            raise ValueError(f"{file.name} is missing")
        content = file.read_bytes()
        if len(content) != weights["bytes"]:
            raise ValueError(f"{file.name} has {len(content)} bytes instead of {weights['bytes']}")
        if hashlib.sha256(content).hexdigest() != weights["sha256"]:
            raise ValueError(f"{file.name} was changed")
        return manifest, load(content)


@contextmanager
def damaged(folder: Path, what: str = "cannot be read", remedy: str = "save the network again") -> Iterator[None]:
    """Inside the `with`, an error is the folder's fault; one that names the folder already stays as it is.

    Args:
        folder: the folder.
        what: the end of the sentence "FOLDER ...".
        remedy: what to do.

    Raises:
        ValueError: anything else was raised inside the block.
    """
    try:
        yield
    except NotAllowedError as error:
        raise ValueError(f"{folder} {error}.") from error
    except Exception as error:
        if isinstance(error, OSError) or str(folder) in str(error):
            raise
        raise ValueError(f"{folder} {what} ({reason(error)}): {remedy}.") from error


def _hash(manifest: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()
