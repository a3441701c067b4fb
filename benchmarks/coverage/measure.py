"""One network through every stage, from random weights to a verified file."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

import qat
from benchmarks.coverage import file_contents
from benchmarks.coverage.agreement import centred, decibels, equal_predictions, tensors
from benchmarks.coverage.case import Case
from benchmarks.coverage.judge import LOWEST_DB
from benchmarks.coverage.segments import with_moved_codes, worst_segment
from benchmarks.failure import failure_line
from qat.torch_private import BatchNorm, tree_leaves, tree_map_only

POLICY = "w8a8"
BATCH, OTHER_BATCH = 4, 3
"""Samples in the batch a file is written with, and in another that it must take, too."""
NOISE = 1e-3
"""Standard deviation of noise that is added to an input, over its own: 60 dB below it, as rounding in the first layers is."""
T = TypeVar("T")
Record = dict[str, Any]


class Stages:
    """The record of a network while it is measured: processor seconds and failure of each stage.

    Seconds of the processor, because those of the clock mean little on a machine that does other work.

    Args:
        record: what is filled.
        save: called with the record when a stage begins or ends.
    """

    def __init__(self, record: Record, save: Callable[[Record], None]) -> None:
        self.record, self.save = record, save
        self.record |= {"running": None, "seconds": {}, "failures": {}, "warnings": []}

    def run(self, name: str, call: Callable[[], T]) -> T | None:
        """Run a stage; if it raises, record that it did and return None."""
        self.record["running"] = name
        self.save(self.record)
        start, result = time.process_time(), None
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            try:
                result = call()
            except Exception as error:  # a network or a stage may raise anything
                self.record["failures"][name] = failure_line(error)
        self.record["seconds"][name] = round(time.process_time() - start, 2)
        said = [
            str(w.message).splitlines()[0][:300] for w in caught if "/qat/" in w.filename or w.category is UserWarning
        ]
        self.record["warnings"] = sorted({*self.record["warnings"], *said})[:10]
        self.record["running"] = None
        self.save(self.record)
        return result


def measure(case: Case, save: Callable[[Record], None] = lambda record: None) -> Record:
    """Take a network through all stages. A stage that another needs ends the measurement when it fails.

    Returns:
        Seconds and failures of the stages, and what they found; see `judge.right` for what a right file is.
    """
    record: Record = {}
    stages = Stages(record, save)
    torch.manual_seed(0)
    network = stages.run("build", lambda: _with_statistics(case))
    if network is None:
        return record
    torch.manual_seed(1)
    example, other = case.inputs(BATCH), case.inputs(OTHER_BATCH)
    record["parameters"] = sum(p.numel() for p in network.parameters())
    prepared = stages.run("prepare", lambda: qat.prepare(network, POLICY, example))
    if prepared is None:
        return record
    stages.run("quantizers off", lambda: _compare_off(network, prepared, example, record))
    batches = [case.inputs(BATCH) for _ in range(2)]
    if stages.run("calibrate", lambda: qat.calibrate(prepared, batches)) is None:
        return record
    stages.run("inspect", lambda: _inspect(prepared, record))
    stages.run("train", lambda: _train(network, prepared, example, record))
    matrices = sum(p.numel() for p in network.parameters() if p.ndim > 1)
    integer = stages.run("convert", lambda: qat.convert(prepared.eval()))
    if integer is not None:
        with TemporaryDirectory() as folder:
            _artefact(stages, prepared, integer, (example, other), matrices, Path(folder) / "model.onnx")
    return record


def _artefact(
    stages: Stages, prepared: nn.Module, integer: nn.Module, batches: tuple[Any, Any], matrices: int, path: Path
) -> None:
    """Export, verification, and a second opinion without `qat`."""
    record = stages.record
    example, other = batches
    stages.run("integer", lambda: _compare_integer(prepared, integer, example, record))

    def export() -> bool:
        qat.export_onnx(integer, example, path)
        return True

    if not stages.run("export", export):
        return
    record["exported"] = True
    stages.run("verify", lambda: _verify(path, prepared, integer, batches, record))
    stages.run("file", lambda: _compare_file(path, prepared, example, "file", record))
    stages.run("other batch", lambda: _compare_file(path, prepared, other, "other_batch", record))
    stages.run("contents", lambda: _contents(path, example, matrices, record))


def _with_statistics(case: Case) -> nn.Module:
    """The network with BatchNorm statistics of noise, in evaluation mode."""
    network = case.build().train()
    norms = [m for m in network.modules() if isinstance(m, BatchNorm)]
    momentums = [m.momentum for m in norms]
    for norm in norms:
        norm.momentum = None  # a plain average, so that nothing is left of the first values
        norm.reset_running_stats()
    with torch.no_grad():
        for _ in range(3 if norms else 1):
            network(*case.inputs(BATCH))
    for norm, momentum in zip(norms, momentums, strict=True):
        norm.momentum = momentum
    network.eval()
    outputs = _outputs(network, case.inputs(2))
    if not outputs or not all(bool(x.isfinite().any()) for x in outputs if x.is_floating_point()):
        raise ValueError("the float network returns no finite numbers.")
    return network


def _outputs(network: nn.Module, inputs: tuple[Any, ...]) -> list[Tensor]:
    with torch.no_grad():
        return tensors(network(*inputs))


def _compare_off(network: nn.Module, prepared: nn.Module, example: tuple[Any, ...], record: Record) -> None:
    """Whether the prepared network computes, with its quantizers off, what the float network computes."""
    prepared.eval()
    with qat.mode(prepared, qat.Mode.OFF):
        expected, found = _outputs(network, example), _outputs(prepared, example)
    record["off_equal"] = len(expected) == len(found) and all(map(torch.equal, expected, found))
    record["off_db"] = decibels(expected, found)


def _inspect(prepared: nn.Module, record: Record) -> None:
    """How the network was captured, and what `inspect` says of it."""
    found = qat.inspect(prepared)
    notes = [found.capture, *map(str, found.notes)]
    record["captured"] = _captured(found.capture)
    record["float_edges"] = len(found.float_edges)
    record["notes"] = [note[:300] for note in notes][:5]


def _captured(sentence: str) -> str:
    """torch.fx, torch.export or layer by layer, from the sentence in which `inspect` says so."""
    return next(way for way in ("layer by layer", "torch.export", "torch.fx") if way in sentence.partition(",")[0])


def _train(network: nn.Module, prepared: nn.Module, example: tuple[Any, ...], record: Record) -> None:
    """One small step; every parameter that has a gradient in float must have a finite one."""
    wanted = {name for name, gradient in _gradients(network.train(), example).items() if gradient is not None}
    network.zero_grad(set_to_none=True)
    network.eval()
    found = _gradients(prepared.train(), example)
    missing = sorted(n for n in wanted if found.get(n) is None)
    wrong = sorted(n for n, g in found.items() if g is not None and not bool(g.isfinite().all()))
    record["gradients"] = {"wanted": len(wanted), "missing": len(missing), "not_finite": len(wrong)}
    parameters = [p for p in prepared.parameters() if p.grad is not None]
    nn.utils.clip_grad_norm_(parameters, 1.0)
    torch.optim.SGD(parameters, lr=1e-3).step()
    prepared.zero_grad(set_to_none=True)
    prepared.eval()
    if missing or wrong:
        what = f"no gradient reaches {missing[0]}" if missing else f"the gradient of {wrong[0]} is not finite"
        raise ValueError(f"{what} ({len(missing)} missing, {len(wrong)} not finite, of {len(wanted)}).")


def _gradients(network: nn.Module, example: tuple[Any, ...]) -> dict[str, Tensor | None]:
    """The gradient of every parameter for a loss that pulls all outputs towards noise."""
    torch.manual_seed(2)
    outputs = _differentiable(network(*example))
    loss = torch.stack([(x - torch.randn_like(x)).clamp(-1e4, 1e4).square().mean() for x in outputs]).sum()
    loss.backward()
    return {name: p.grad for name, p in network.named_parameters()}


def _differentiable(output: Any) -> list[Tensor]:
    return [x for x in tree_leaves(output) if isinstance(x, Tensor) and x.requires_grad]


def _compare_integer(prepared: nn.Module, integer: nn.Module, example: tuple[Any, ...], record: Record) -> None:
    expected, found = _outputs(prepared, example), _outputs(integer, example)
    record["integer_db"] = decibels(expected, found)
    record["integer_centred_db"] = decibels(centred(expected), centred(found))
    record["integer_predictions"] = equal_predictions(expected, found)
    record["sensitivity_db"] = _sensitivity(prepared, example, expected)
    if record["integer_db"] < LOWEST_DB:
        record["moved_codes_db"] = with_moved_codes(prepared, integer, example)
    if (worst := worst_segment(prepared, integer, example)) is not None:
        record["worst_segment"], record["segment_db"], record["segments"] = worst


def _sensitivity(prepared: nn.Module, example: tuple[Any, ...], expected: list[Tensor]) -> float | None:
    """How far the prepared network is from itself when its images change by `NOISE`; None if no input is of floats."""
    if not any(x.is_floating_point() for x in tensors(example)):
        return None
    torch.manual_seed(3)
    changed = tree_map_only(
        Tensor, lambda x: x + NOISE * x.std() * torch.randn_like(x) if x.is_floating_point() else x, example
    )
    return decibels(expected, _outputs(prepared, changed))


def _verify(path: Path, prepared: nn.Module, integer: nn.Module, batches: tuple[Any, Any], record: Record) -> None:
    """What `qat.verify` finds: differences that a site has on its own account, and its alarm."""
    found = qat.verify(path, integer, list(batches), prepared)
    record["codes"], record["local_mismatches"] = found.codes_compared, found.code_mismatches
    record["propagated"], record["float_ties"], record["alarm"] = found.propagated, found.float_ties, found.alarm
    record["differing_sites"] = [f"{s.name}: {s.code_mismatches}" for s in found.sites if s.code_mismatches][:5]


def _compare_file(path: Path, prepared: nn.Module, inputs: tuple[Any, ...], key: str, record: Record) -> None:
    """The file's outputs in a session of our own, beside those of the prepared network."""
    expected = _outputs(prepared, inputs)
    found = [torch.as_tensor(x) for x in file_contents.run(file_contents.session(path), tensors(inputs))]
    record[f"{key}_db"] = decibels(expected, found)
    record[f"{key}_predictions"] = equal_predictions(expected, found)


def _contents(path: Path, example: tuple[Any, ...], matrices: int, record: Record) -> None:
    """Shares of multiply-adds and of weights in integers, and the size of the file."""
    record["file_bytes"] = path.stat().st_size
    record["weights_in_integers"] = round(min(1.0, file_contents.elements_of_codes(path) / max(matrices, 1)), 4)
    count = file_contents.multiply_adds(path, tensors(example))
    record["multiply_adds"] = vars(count)
    record["integer_share"] = round(count.layers_in_integers / count.layers, 4) if count.layers else None
