"""What a file says of itself in its metadata: where it comes from, its own hash, and the verification that it passed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from importlib import metadata as installed
from pathlib import Path
from typing import Any

import onnx
from torch import Tensor, nn

from qat.export.file_proof import FileProof
from qat.export.onnx.onnx_file import read_onnx
from qat.export.verification import DamagedFileError, StoredDifference, Verification
from qat.files import write_atomically
from qat.integer import IntegerModel
from qat.integer.fingerprint import fingerprint
from qat.reading.malformed import malformed
from qat.transform.policy_record import plain_data
from qat.transform.record import record_of
from qat.version import version

EXAMPLE_SHAPES = "qat.example_shapes"
"""Shapes of the example inputs with which the file was written."""
MODEL, POLICY, CONTENT, PROOF = "qat.model_sha256", "qat.policy_sha256", "qat.content_sha256", "qat.proof_sha256"
OWN_HASHES = {"content": CONTENT, "model": MODEL, "policy": POLICY}
FREE_AXES = "qat.free_axes"
"""Input -> {axis: its name}, if the caller chose them."""
RENAMED_SITES = "qat.renamed_sites"
"""Site -> the tensor that holds its codes, where an input or output has the site's name."""
VERSIONS, VERIFICATION = "qat.versions", "qat.verification"
DEFAULT_TARGET = "onnxruntime"
TARGET = "qat.target"
"""The target in whose dialect the file is written, unless it is the default."""


def describe(
    file: onnx.ModelProto,
    model: nn.Module,
    examples: Sequence[Tensor],
    axes: Mapping[str, Mapping[int, str]] | None = None,
    renamed: Mapping[str, str] | None = None,
    dialect: str = DEFAULT_TARGET,
) -> None:
    """Write into the metadata what the file was made of, in place. It holds no date: the same model gives the same file.

    Args:
        file: the file.
        model: what it was written from.
        examples: the example inputs.
        axes: input -> {free axis: its name}, if the caller chose them.
        renamed: site -> the tensor that holds its codes, of sites that could not keep their name.
        dialect: the target in whose dialect it is written.
    """
    metadata = {
        "generator": "qat",
        EXAMPLE_SHAPES: json.dumps([list(x.shape) for x in examples]),
        VERSIONS: json.dumps({"qat": version()} | {name: installed.version(name) for name in ("torch", "onnx")}),
        MODEL: fingerprint(model),
    }
    if dialect != DEFAULT_TARGET:
        metadata[TARGET] = dialect
    if axes is not None:
        metadata[FREE_AXES] = json.dumps(axes)
    if renamed:
        metadata[RENAMED_SITES] = json.dumps(renamed)
    if (policy := _policy(model)) is not None:
        metadata[POLICY] = hashlib.sha256(json.dumps(policy, sort_keys=True).encode()).hexdigest()
    _write(file, metadata)


def example_shapes(file: onnx.ModelProto) -> list[list[int]]:
    """Shapes of the example inputs with which the file was written."""
    found: list[list[int]] = _entry(file, EXAMPLE_SHAPES, [])
    return found


def free_axes(file: onnx.ModelProto) -> dict[str, dict[int, str]] | None:
    """Input -> {free axis: its name}, if the caller of `export_onnx` chose them."""
    found = _entry(file, FREE_AXES, None)
    return None if found is None else {name: {int(i): n for i, n in axes.items()} for name, axes in found.items()}


def dialect_name(file: onnx.ModelProto) -> str:
    """The target in whose dialect the file says that it is written."""
    return _metadata(file).get(TARGET, DEFAULT_TARGET)


def renamed_sites(file: onnx.ModelProto) -> dict[str, str]:
    """Site -> the tensor that holds its codes, of sites whose name an input or output has."""
    renamed: dict[str, str] = _entry(file, RENAMED_SITES, {})
    return renamed


def record_verification(path: str | Path, result: Verification) -> None:
    """Write the result of a verification into the metadata of the file. Graph and constants stay as they are."""
    file = read_onnx(path)
    found = {
        "exact": result.exact,
        "samples": result.samples,
        "codes_compared": result.codes_compared,
        "constants_compared": result.constants_compared,
        "code_mismatches": result.code_mismatches,
        "float_ties": result.float_ties,
        "propagated": result.propagated,
        "alarm": result.alarm,
        "weak_inputs": result.weak_inputs,
        "weak_data": result.weak_data,
        "exercised": {s.name: round(s.exercised, 4) for s in result.sites if s.exercised is not None},
        "runtime": result.runtime,
    }
    _write(file, _metadata(file) | {VERIFICATION: json.dumps(found)})
    write_atomically(path, file.SerializeToString())


def check_proof(path: str | Path) -> FileProof:
    """What a file can tell without the model that it was written from.

    Raises:
        DamagedFileError: this is not an ONNX file.
    """
    file = read_onnx(path)
    metadata = _metadata(file)
    recorded = CONTENT in metadata
    whole = file.ByteSize() == Path(path).stat().st_size  # a field twice, or behind the end, reads as the same content
    intact = recorded and whole and is_intact(file)
    with malformed(path, "has records that cannot be read", "verify it again", DamagedFileError):
        verification = json.loads(metadata[VERIFICATION]) if intact and VERIFICATION in metadata else None
        versions = json.loads(metadata[VERSIONS]) if intact and VERSIONS in metadata else {}
    own = {name: metadata[key] for name, key in OWN_HASHES.items() if key in metadata}
    hashes = {"file": hashlib.sha256(Path(path).read_bytes()).hexdigest(), **own}
    return FileProof(recorded, intact, verification, metadata, hashes, versions)


def is_intact(file: onnx.ModelProto) -> bool:
    """Whether content and metadata have the hashes that the file carries; also if it carries none, as other tools' files."""
    metadata = _metadata(file)
    ours = [p.key for p in file.metadata_props if p.key.startswith("qat.")]
    if not ours:
        return True
    once = len(set(ours)) == len(ours)  # of two, readers take either
    return once and metadata.get(CONTENT) == content_hash(file) and metadata.get(PROOF) == _proof_hash(metadata)


def differences_of_records(
    expected: onnx.ModelProto, found: onnx.ModelProto, stateless: bool = True
) -> list[StoredDifference]:
    """Entries of the metadata that are wrong or missing.

    Args:
        expected: the integer model, written anew in the same way.
        found: the file.
        stateless: whether running the model leaves it as it is. One that counts its calls has another hash after each.
    """
    wanted, given = _metadata(expected), _metadata(found)
    if not any(key.startswith("qat.") for key in given):
        return [StoredDifference("metadata", 1, "was removed", only_values=True)]
    if not is_intact(found):
        text = "is not what was written, or what surrounds the graph is not"
        return [StoredDifference("metadata", 1, text, only_values=True)]
    later = wanted[VERSIONS] != given.get(VERSIONS)  # hashes of settings hold for one version of qat
    left_out = {CONTENT, PROOF, VERSIONS} | ({MODEL, POLICY} if later else set()) | (set() if stateless else {MODEL})
    keys = [key for key in wanted if key not in left_out]
    wrong = [key for key in keys if given.get(key) != wanted[key]] + [VERSIONS] * (VERSIONS not in given)
    return [StoredDifference(f"metadata entry {key}", 1, "is not that of the integer model", True) for key in wrong]


def content_hash(file: onnx.ModelProto) -> str:
    """sha256 of everything in the file but its metadata, in hexadecimal."""
    bare = onnx.ModelProto()
    bare.CopyFrom(file)
    del bare.metadata_props[:]
    return hashlib.sha256(bare.SerializeToString(deterministic=True)).hexdigest()


def _write(file: onnx.ModelProto, metadata: Mapping[str, str]) -> None:
    """Replace the metadata, and add the hashes of the content and of the metadata themselves."""
    complete = {**metadata, CONTENT: content_hash(file)}
    complete[PROOF] = _proof_hash(complete)
    del file.metadata_props[:]
    onnx.helper.set_model_props(file, complete)


def _policy(model: nn.Module) -> Any:
    """The policy in plain data, as `qat.convert` left it; None if it is not known."""
    if isinstance(model, IntegerModel):
        return model.policy
    record = record_of(model)
    return None if record is None else plain_data(record.policy)


def _entry(file: onnx.ModelProto, key: str, default: Any) -> Any:
    """An entry of the metadata; the default if it is missing or was tampered with."""
    try:
        found = json.loads(_metadata(file).get(key, "null"))
    except ValueError:
        return default
    return found if isinstance(found, type(default)) or default is None else default


def _metadata(file: onnx.ModelProto) -> dict[str, str]:
    return {p.key: p.value for p in file.metadata_props}


def _proof_hash(metadata: Mapping[str, str]) -> str:
    """The hash of all entries that `qat` wrote; others may add entries of their own."""
    ours = {key: value for key, value in metadata.items() if key.startswith("qat.") and key != PROOF}
    return hashlib.sha256(json.dumps(ours, sort_keys=True).encode()).hexdigest()
