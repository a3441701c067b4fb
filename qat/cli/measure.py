"""Several models on the same samples: a metric, agreement with the first, latency in turns, size."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from qat.cli.errors import UsageError, usage_errors, with_kind
from qat.cli.metric import Metric
from qat.cli.sources.data import Batch, Data, cut, first_tensor, map_tensors, tensors_of
from qat.cli.sources.model import Model
from qat.export.decisions import decisions
from qat.export.stopwatch import Timing, time_in_turns
from qat.messages import type_of
from qat.report import IDENTICAL_DB
from qat.torch_private import tree_leaves
from qat.transform.batches import call_model, call_of

BATCH_SIZES = (1, 32)


@dataclass
class Measurement:
    """What is known of one model.

    Attributes:
        name: as it was given.
        runtime: what computes it.
        size_bytes: of the file, or of the numbers of a network with the bits that they need.
        size_kind: "file" or "stored".
        value: of the metric; None without labels.
        agreement: share of samples (or pixels, or words) for which it decides as the first model does.
        sqnr_db: signal-to-noise ratio of its first output against that of the first model, in dB; None: equal;
            -999: it is not finite, or that of the first model is zero everywhere.
        latency: batch size -> Timing.
        notes: sentences.
    """

    name: str
    runtime: str
    size_bytes: int
    size_kind: str
    value: float | None = None
    agreement: float | None = None
    sqnr_db: float | None = None
    latency: dict[int, Timing] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


@torch.no_grad()
def run(network: nn.Module, inputs: Any) -> Tensor:
    """The first tensor that a network returns, run in portions if its file takes a fixed number of samples."""
    size = getattr(network, "fixed_batch", None)
    samples = len(first_tensor(inputs))
    if size is None or size == samples:
        return _first(network(*_in_order(network, inputs)) if _is_file(network) else call_model(network, inputs))
    parts = []
    for start in range(0, samples, size):
        rows = (torch.arange(start, start + size) % samples).tolist()
        parts.append(run(network, map_tensors(inputs, partial(_rows, rows=rows))))
    return torch.cat(parts)[:samples]


def _rows(x: Tensor, rows: list[int]) -> Tensor:
    return x[rows] if x.ndim else x


def _repeated(x: Tensor, size: int) -> Tensor:
    """One sample, `size` times."""
    return x.expand(size, *x.shape[1:]).contiguous() if x.ndim else x


def _is_file(network: nn.Module) -> bool:
    return hasattr(network, "size_bytes")


def _in_order(network: nn.Module, inputs: Any) -> list[Any]:
    """The inputs in the order of a file. One of ONNX knows their names, others have the order of the network's forward."""
    if isinstance(inputs, dict) and hasattr(network, "session"):
        names = [given.name for given in network.session.get_inputs()]  # type: ignore[union-attr, operator]
        return [inputs[name] for name in names if name in inputs]
    return tensors_of(inputs)


def _first(output: Any) -> Tensor:
    found = next((x for x in tree_leaves(output) if isinstance(x, Tensor)), None)
    if found is None:
        raise ValueError(f"the model returns {type_of(output)} without tensors, which cannot be measured.")
    return found.detach().cpu()


def check_fits(data: Data, model: Model) -> None:
    """Run the model on a few samples: what does not fit is found before anything is quantized or measured.

    Raises:
        UsageError: they are not what its forward takes.
    """
    with usage_errors():  # a function of the user's may yield anything
        batch = next(iter(data.test))
    inputs = cut(batch, 2).inputs
    try:
        taken = call_of(model.network, inputs).args
        run(model.network, inputs)
    except Exception as error:  # of the user's network, whose errors are of any kind
        shapes = ", ".join(f"{tuple(x.shape)} {str(x.dtype).removeprefix('torch.')}" for x in tensors_of(inputs))
        raise UsageError(
            f"{model.name} does not run on --data {data.name} ({shapes}; {with_kind(error)}): give what its forward takes."
        ) from error
    if taken and isinstance(inputs, tuple) and len(taken) < len(inputs):
        raise UsageError(
            f"{model.name} takes {len(taken)} of the {len(inputs)} inputs of --data {data.name}: leave the others out."
        )


def measure(models: list[Model], data: Data, metric: Metric | None) -> list[Measurement]:
    """Metric and agreement of all models, batch by batch, so that no outputs are kept."""
    results = [described(model) for model in models]
    sums = [_Sums() for _ in models]
    for batch in data.test:
        reference: Tensor | None = None
        for model, of_model in zip(models, sums, strict=True):
            output = run(model.network, batch.inputs)
            reference = output if reference is None else reference
            of_model.add(output, reference, batch, metric)
    for result, of_model in zip(results, sums, strict=True):
        of_model.write(result, metric)
    return results


class _Sums:
    """What a model's outputs add up to."""

    def __init__(self) -> None:
        self.counted = self.value = self.same = self.decided = 0.0
        self.signal = self.noise = 0.0

    def add(self, output: Tensor, reference: Tensor, batch: Batch, metric: Metric | None) -> None:
        """One batch."""
        if output.shape != reference.shape:
            raise UsageError(
                f"the models return {tuple(reference.shape[1:])} and {tuple(output.shape[1:])} for a sample: "
                "compare models of one task."
            )
        if metric is not None and batch.labels is not None and (counted := metric.count(batch.labels)):
            self.counted += counted
            self.value += counted * metric.score(output, batch.labels)
        mine, first = decisions(output), decisions(reference)
        self.same, self.decided = self.same + int((mine == first).sum()), self.decided + first.numel()
        self.signal += float(reference.double().square().sum())
        self.noise += float((output.double() - reference.double()).square().sum())

    def write(self, result: Measurement, metric: Metric | None) -> None:
        """Write the means."""
        result.value = self.value / self.counted if metric is not None and self.counted else None
        result.agreement = self.same / self.decided
        result.sqnr_db = _decibels(self.signal, self.noise)


def _decibels(signal: float, noise: float) -> float | None:
    if noise == 0:
        return None
    ratio = signal / noise
    return 10 * math.log10(ratio) if ratio > 0 and math.isfinite(ratio) else -IDENTICAL_DB


def described(model: Model) -> Measurement:
    """Name, runtime and size of a model."""
    from qat.integer import stored_bytes

    if model.path is not None and model.target is not None:
        return Measurement(model.name, model.target.name, file_size(model.path), "file", notes=list(model.notes))
    runtime = "torch, fake-quantized" if model.is_prepared else "torch"
    return Measurement(model.name, runtime, stored_bytes(model.network), "stored", notes=list(model.notes))


def file_size(path: Path) -> int:
    """Bytes of a file, or of all files in a folder."""
    return sum(p.stat().st_size for p in path.rglob("*") if p.is_file()) if path.is_dir() else path.stat().st_size


def time_models(
    models: Mapping[str, nn.Module],
    example: Any,
    seconds: float,
    threads: int | None,
    sizes: tuple[int, ...] = BATCH_SIZES,
) -> dict[str, dict[int, Timing]]:
    """Latency of all models in turns, for each batch size that all of them take.

    Args:
        models: by name.
        example: inputs whose first sample is repeated.
        seconds: about how long each batch size may take.
        threads: of files' runtimes; None: as many as they choose.
        sizes: batch sizes.

    Returns:
        name -> batch size -> Timing.
    """
    timings: dict[str, dict[int, Timing]] = {name: {} for name in models}
    first = cut(Batch(example), 1).inputs
    for size in sizes:
        inputs = map_tensors(first, partial(_repeated, size=size))
        calls = {name: _call(network, inputs, threads) for name, network in models.items() if _takes(network, size)}
        for name, timing in time_in_turns(calls, seconds=seconds).items():
            timings[name][size] = timing
    return timings


def _takes(network: nn.Module, size: int) -> bool:
    return getattr(network, "fixed_batch", None) in (None, size)


def _call(network: nn.Module, inputs: Any, threads: int | None) -> Callable[[], object]:
    """What is timed: of a file, the runtime alone."""
    if not hasattr(network, "session"):
        return partial(run, network, inputs)
    from qat.export.onnx.runtime import feeds, session

    opened = session(str(network.path), threads, spinning=False)
    return partial(opened.run, None, feeds(opened, _in_order(network, inputs)))
