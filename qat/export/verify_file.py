"""The check before deployment: does a file compute in its runtime what the integer model does, and that what was trained?"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any, overload

from torch import nn

from qat.arguments import check_flag
from qat.export.file_format import check_format
from qat.export.file_network import written_file
from qat.export.file_proof import FileProof
from qat.export.onnx.proof import check_proof
from qat.export.targets import TARGETS, Runtime, runtime_of, target_of_file
from qat.export.verification import Verification
from qat.transform.calibrate import check_batches


@overload
def verify(path: str | Path) -> FileProof:
    """What a file says of itself: whether it is intact, and what its recorded verification found."""


@overload
def verify(
    path: str | Path,
    integer: nn.Module,
    batches: Iterable[Any],
    prepared: nn.Module | None = None,
    record: bool = False,
    runtime: str | None = None,
) -> Verification:
    """Compare a file with the integer model that it was written from."""


def verify(
    path: str | Path,
    integer: nn.Module | None = None,
    batches: Iterable[Any] | None = None,
    prepared: nn.Module | None = None,
    record: bool = False,
    runtime: str | None = None,
) -> Verification | FileProof:
    """Compare a file with the integer model, and the integer model with the prepared network.

    Everything that the file stores is compared with the integer model written anew. Then it runs in its runtime, all
    optimisations on, and every site is compared, bit for bit; where sites differ, the file runs once more and every site is
    computed from the integer model's own codes, which tells a site that differs from one that inherits the difference.

    Args:
        path: the file that `qat.export_onnx`, or the `write` of a target, wrote.
        integer: the result of `qat.convert`.
        batches: model inputs: each a tensor, or a sequence that begins with them (labels are ignored).
        prepared: the network that was converted. With it, its sites (fake-quantized, in evaluation mode) are compared with
            those of the integer model, and it is converted anew: below 20 dB, from equal codes, or if one number differs,
            `Verification.alarm` and a warning say so.
        record: whether to write the result into the file's metadata.
        runtime: what runs the file, a name of `qat.export.RUNTIMES`; None: that of the file's suffix, ONNX Runtime for .onnx.
            One that is not exact has a tolerance, which the result states.

    Returns:
        What was found. Without a model, what the file says of itself: whether it is still as it was written, and what a
        recorded verification found.

    Raises:
        DamagedFileError: its format shows that the file is damaged.
        ValueError: this is not an integer model, there are no batches, the file's sites are not those of the model, it is
            damaged, or there is no such runtime.
        FileNotFoundError: there is no such file.
        ImportError: the runtime is not installed.
    """
    path = written_file(path)
    check_flag("record", record)
    if integer is None and batches is None:
        if path.suffix != ".onnx" and target_of_file(path) is not None:
            check_format(path)
            return FileProof(False, False, None, {}, {"file": hashlib.sha256(path.read_bytes()).hexdigest()})
        return check_proof(path)
    if batches is None:
        raise ValueError(
            "batches is missing: write qat.verify(path, integer, [inputs]), or qat.verify(path) for its record."
        )
    if not isinstance(integer, nn.Module):
        raise ValueError(f"{type(integer).__name__} is not an integer model: pass the result of qat.convert(prepared).")
    check_batches(batches)
    result = _runtime(path, runtime).verify(path, integer, batches, prepared, record)
    if result.alarm:
        warnings.warn(result.alarm, stacklevel=2)
    return result


def _runtime(path: Path, name: str | None) -> Runtime:
    target = target_of_file(path)
    if name is None:
        return runtime_of("onnxruntime") if target is None else target.runtime
    runtime = runtime_of(name)
    able = [t.runs_in for t in TARGETS if path.suffix in t.suffixes]
    if able and name not in able:
        raise ValueError(
            f"runtime={name!r} does not run {path.suffix} files, such as {path}: write one of {', '.join(dict.fromkeys(able))}."
        )
    return runtime
