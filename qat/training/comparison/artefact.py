"""The ONNX file of a fit: written, verified and timed."""

from __future__ import annotations

import itertools
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn

from qat.export import (
    TARGETS,
    OnnxRuntimeNetwork,
    Target,
    Verification,
    VerificationError,
    export_float_onnx,
    latency,
)
from qat.export.onnx.proof import record_verification
from qat.export.onnx.runtime import operator_shares
from qat.export.onnx.saturation import EXACT
from qat.export.unverified import named_when_verified
from qat.integer import convert
from qat.torch_private import tree_map_only
from qat.training.comparison import row_names
from qat.training.comparison.divergence import divergence
from qat.training.lightning.evaluation_data import find_test_dataloaders
from qat.training.lightning.inputs import BatchToInputs, batch_as_in_evaluation, move_inputs
from qat.training.lightning.random_numbers import seeded
from qat.transform.batches import positional_arguments

log = logging.getLogger(__name__)

LATENCY_BATCH_SIZES = (1, 32)


@dataclass
class TargetFile:
    """A further file of the same integer model, for another target. path: as `Artefact.path`."""

    target: Target
    path: Path
    verification: Verification

    def network(self) -> nn.Module:
        """The file as a module, run by the target's own runtime."""
        return self.target.network(self.path)


@dataclass
class Artefact:
    """The written file, the integer model it was written from, and the measurements of both."""

    path: Path
    """The file: under the name that was asked for if it passed its verification, else `unverified_path` of it."""
    integer: nn.Module
    verification: Verification
    float_path: Path | None
    latency_ms: dict[str, dict[int, float]]
    """Row of the report, of those that are files of this fit: batch size -> median milliseconds in ONNX Runtime."""
    seconds: dict[str, float]
    """Durations of "export", "verification" and "latency"."""
    latency_shares: dict[str, float] = field(default_factory=dict)
    """Where the time of the quantized file goes, see `operator_shares`."""
    targets: list[TargetFile] = field(default_factory=list)
    """The files for other targets."""

    @property
    def files(self) -> list[Artefact | TargetFile]:
        """This one, and those for other targets."""
        return [self, *self.targets]

    def network(self) -> nn.Module:
        """The file as a module, run by ONNX Runtime."""
        return OnnxRuntimeNetwork(self.path)

    def require_passed(self) -> None:
        """Nothing, if every file may be deployed.

        Raises:
            VerificationError: one may not; the message names it and says what differs.
        """
        for file in self.files:
            if failure := file.verification.failure(file.path):
                raise VerificationError(failure)


def write_verified(
    prepared: nn.Module,
    integer: nn.Module,
    test_inputs: Callable[[], Iterator[tuple[Tensor, ...]]],
    path: Path,
    target: Target = TARGETS[0],
    diverged: str = "",
    unproven: str = "",
) -> tuple[Path, Verification, dict[str, float]]:
    """Write a file and verify it; it is called `path` if it passed, else `unverified_path`.

    diverged: a sentence, if the training did; it is the reason then why a file does not pass. unproven: a sentence, if the
    integer model itself is not what was to be trained; no file of it passes.

    Returns:
        Where the file is, what was found, and the durations of "export" and "verification".
    """
    start = time.perf_counter()
    with named_when_verified(path) as file:
        target.write(integer, one_sample(next(test_inputs())), file.path)
        written = time.perf_counter()
        verification = target.verify(file.path, integer, test_inputs(), prepared)
        seconds = {"export": written - start, "verification": time.perf_counter() - written}
        if verification.passed and unproven:
            verification.alarm = unproven
            if target.runs_in == TARGETS[0].runs_in:
                record_verification(file.path, verification)
        if not verification.passed:
            verification.alarm = diverged or verification.alarm
        file.passed = verification.passed
    return file.path, verification, seconds


def write_artefact(
    prepared: nn.Module,
    test_inputs: Callable[[], Iterator[tuple[Tensor, ...]]],
    path: Path,
    float_network: nn.Module | None = None,
    float_path: Path | None = None,
    other_files: Mapping[str, str] | None = None,
    time_it: bool = True,
    targets: Mapping[Target, Path] | None = None,
    failure: Callable[[nn.Module], str] = lambda integer: "",
) -> Artefact:
    """Convert a prepared network to integers, write the ONNX file, verify it, and measure the latency.

    The file is compared with the integer model and the integer model with the prepared network; the file keeps the result in
    its metadata. A file that does not pass stays under another name, `unverified_path`.

    Args:
        prepared: the prepared network, on the CPU.
        test_inputs: gives the network's inputs for the whole test set, on the CPU; called several times.
        path: the file to write.
        float_network: the network before it was prepared.
        float_path: where to write the float network as well, to compare its latency. None: nowhere.
        other_files: further ONNX files whose latency is measured, by name.
        time_it: whether to measure latencies at all.
        targets: further targets, and where to write their files.
        failure: a sentence, if the integer model is not what was to be trained: then no file passes.

    Raises:
        ValueError: the network cannot be converted, written or run; if its training diverged, the message says so.
    """
    diverged = divergence(prepared, float_network)
    try:
        integer = convert(prepared)
        write = partial(write_verified, prepared, integer, test_inputs, diverged=diverged, unproven=failure(integer))
        path, verification, seconds = write(path)
    except ValueError as error:
        if not diverged:
            raise
        raise ValueError(diverged) from error
    start = time.perf_counter()
    example = one_sample(next(test_inputs()))
    files: dict[str, str | Path] = {row_names.ONNX_RUNTIME: path}
    if float_network is None:
        float_path = None
    elif float_path is not None:
        export_float_onnx(float_network, example, float_path)
        files = {row_names.FLOAT: float_path, **files}
    files |= dict(other_files or {})
    latency_ms, shares = _timed(files, path, example) if time_it else ({}, {})
    seconds["latency"] = time.perf_counter() - start
    artefact = Artefact(path, integer, verification, float_path, latency_ms, seconds, latency_shares=shares)
    for target, of_target in (targets or {}).items():
        written, verification, took = write(of_target, target)
        artefact.targets.append(TargetFile(target, written, verification))
        for stage in took:
            seconds[stage] += took[stage]
    _log_verification(artefact)
    return artefact


def _timed(
    files: Mapping[str, str | Path], quantized: Path, example: tuple[Tensor, ...]
) -> tuple[dict[str, dict[int, float]], dict[str, float]]:
    """The latency of each file, and where the time of the quantized one goes."""
    threads = torch.get_num_threads()  # as many as the report says
    times = latency(files, example, batch_sizes=LATENCY_BATCH_SIZES, threads=threads)
    return times, operator_shares(quantized, example, LATENCY_BATCH_SIZES[-1], threads=threads)


def _log_verification(artefact: Artefact) -> None:
    for file in artefact.files:
        found, name = file.verification, file.path.name
        log.info(
            "%s: %s of %s codes differ from the integer model over %s test samples",
            name,
            f"{found.code_mismatches:,}",
            f"{found.codes_compared:,}",
            f"{found.samples:,}",
        )
        for sentence in found.weak_data if found.passed else found.sentences:
            log.warning("%s: %s", name, sentence)
    needs_fma = [name for name, add in artefact.integer.named_modules() if getattr(add, "needs_fma", False)]
    if needs_fma:
        log.info(
            "%s: on processors without fused multiply-adds, codes of %s may differ by one",
            artefact.path.name,
            needs_fma,
        )
    saturating = [
        layer_name for layer_name, layer in artefact.integer.named_modules() if getattr(layer, "may_saturate", False)
    ]
    if saturating:
        log.info(
            "%s: on x86 processors without VNNI, run it with the session option %s = %s, as it was verified; without it, "
            "%d layers of 8-bit weights (%s, ...) would saturate; weights of 7 bits (policy.reduce_range=true) never do",
            artefact.path.name,
            *EXACT,
            len(saturating),
            saturating[0],
        )


def one_sample(inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    """The arguments of a network with the first sample of a batch; what is no tensor, and has no samples, stays."""
    sample: tuple[Any, ...] = tree_map_only(Tensor, lambda x: x[:1] if x.ndim else x, inputs)
    return sample


def positional_test_inputs(
    trainer: L.Trainer, module: L.LightningModule, network: nn.Module, inputs: BatchToInputs, dataloaders: Any = None
) -> Iterator[tuple[Tensor, ...]]:
    """Positional network inputs for the whole test set, on the CPU: the samples, in the order, in which `evaluate` measures.

    Random numbers are isolated until the last batch is drawn, or the iterator is closed.

    Args:
        trainer: the Trainer of the fit.
        module: the LightningModule whose transfer hooks apply to a batch.
        network: decides the order of inputs that have names.
        inputs: from a batch to the network's inputs.
        dataloaders: test dataloaders, if neither datamodule nor module has them.
    """
    is_reduced = trainer.precision.endswith("-true") and trainer.precision != "32-true"
    dtype = torch.float32 if is_reduced else None  # a hook of the user's may have followed the fit's precision
    loaders = find_test_dataloaders(trainer, module, dataloaders)
    with seeded(0, loaders):
        for batch in itertools.chain.from_iterable(loaders):
            given = inputs(batch_as_in_evaluation(trainer, module, batch))
            yield tuple(move_inputs(positional_arguments(network, given), torch.device("cpu"), dtype))
