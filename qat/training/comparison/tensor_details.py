"""Single tensors of a prepared network for the report: distributions, errors, sensitivity; and scales during the training."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import lightning as L
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qat.capture import copy_model
from qat.contexts import training_mode
from qat.quantizers import Mode, Quantizer
from qat.report.results.details import Confusion, TensorDetail, TensorKind, Trajectories, Trajectory
from qat.report.results.schema import IDENTICAL_DB
from qat.torch_private import tree_map_only
from qat.training.comparison.batch_parts import first_output
from qat.training.comparison.rows import Measured, of_artefact
from qat.training.lightning.private_api import set_compiled_call
from qat.training.loggers.log_results import log_point
from qat.transform import mode, quantizers
from qat.transform.batches import positional_arguments

T = TypeVar("T")
BINS = 64
MOST_TENSORS = 400
"""A network with more tensors is not measured tensor by tensor: results.json would become large."""
MOST_CLASSES = 100
POINTS = 24
"""About how many steps of a fit are recorded."""
FEW_SAMPLES = 16
PATIENCE = 20.0
"""Seconds after which no further tensor is quantized alone: a large network has many."""


def first_samples(network: nn.Module, batches: Generator[Any]) -> tuple[Any, ...]:
    """The arguments of a call with the first few samples, on the CPU; () if there are none. `batches` is closed."""
    with closing(batches):
        given = next(batches, None)
    arguments = () if given is None else positional_arguments(network, given)
    few: tuple[Any, ...] = tree_map_only(Tensor, lambda x: (x[:FEW_SAMPLES] if x.ndim else x).detach().cpu(), arguments)
    return few


@torch.no_grad()
def tensor_details(network: nn.Module, inputs: Sequence[Any]) -> list[TensorDetail]:
    """Every quantized tensor of a network on the CPU, seen with the samples `inputs`; empty without, or of too many."""
    found = quantizers(network)
    if not inputs or len(found) > MOST_TENSORS:
        return []
    with training_mode(network, False):
        with _seen(network, _detail) as seen:
            network(*inputs)
        sensitivity = _sensitivity(network, inputs, [found[name] for name in seen])
    return [replace(detail, sensitivity_db=loss) for detail, loss in zip(seen.values(), sensitivity, strict=True)]


def _sensitivity(network: nn.Module, inputs: Sequence[Any], found: Sequence[Quantizer]) -> list[float | None]:
    """Signal to noise of the output if each of the quantizers works alone, in dB; None: not measured in time."""
    begin = time.perf_counter()
    sensitivity: list[float | None] = []
    with mode(network, Mode.OFF):
        wanted = first_output(network(*inputs))
        for quantizer in found:
            if time.perf_counter() - begin > PATIENCE:
                sensitivity.append(None)
                continue
            quantizer.mode = Mode.QUANTIZE
            sensitivity.append(decibels(wanted, first_output(network(*inputs))))
            quantizer.mode = Mode.OFF
    return sensitivity


def _detail(name: str, quantizer: Quantizer, x: Tensor) -> TensorDetail:
    x = F.relu(x) if quantizer.fuses_relu else x
    kind: TensorKind = "weight" if quantizer.is_weight else "activation"
    detail = TensorDetail(label_of(name, quantizer), kind, decibels(x, quantizer(x)), None)
    steps = in_steps(quantizer, x)
    if steps is None:
        return detail
    grid = quantizer.spec.grid
    low, high = float(grid.qmin) - 1.5, float(grid.qmax) + 1.5
    existing = quantizer.quantize(x).unique()
    return replace(
        detail,
        clipped=clipped_share(quantizer, steps),
        lowest=grid.qmin,
        highest=grid.qmax,
        levels=[float(level) for level in existing] if len(existing) <= 17 else [],
        first=low,
        last=high,
        counts=torch.histc(steps.flatten().clamp(low, high), BINS, low, high).long().tolist(),
    )


def label_of(name: str, quantizer: Quantizer) -> str:
    """The name of a tensor without the words that every quantizer has in its own."""
    return quantizer.label or name.removeprefix("sites.").removesuffix("_quantizer")


def in_steps(quantizer: Quantizer, x: Tensor) -> Tensor | None:
    """The values in steps of their scales, so that a code is a whole number; None if there is no such step."""
    if not quantizer.scaled_codes:
        return None
    try:
        scale, zero_point = quantizer.qparams()
        granularity, view = quantizer.spec.granularity, quantizer.spec.granularity.view(x.float())
        scale, zero_point = (granularity.broadcastable(p, tuple(x.shape)) for p in (scale, zero_point))
        steps = view / scale + zero_point
        return steps if bool(torch.isfinite(steps).all()) else None
    except (RuntimeError, NotImplementedError, AttributeError):
        return None


def clipped_share(quantizer: Quantizer, steps: Tensor) -> float:
    """The share of values, in steps, that lie more than half a step outside of the codes."""
    grid = quantizer.spec.grid
    return float(((steps < grid.qmin - 0.5) | (steps > grid.qmax + 0.5)).float().mean())


def decibels(wanted: Any, got: Any) -> float | None:
    """Signal to quantization noise in dB; None if one of them is not a tensor or not finite."""
    if not isinstance(wanted, Tensor) or not isinstance(got, Tensor) or not wanted.is_floating_point():
        return None
    signal, noise = float(wanted.double().square().sum()), float((wanted.double() - got.double()).square().sum())
    if not math.isfinite(signal) or not math.isfinite(noise) or not signal:
        return None
    return min(10 * math.log10(signal / noise), IDENTICAL_DB) if noise else IDENTICAL_DB


@contextmanager
def _seen(network: nn.Module, look: Callable[[str, Quantizer, Tensor], T]) -> Iterator[dict[str, T]]:
    """Inside the `with` block, looks at the first tensor that each quantizer with a range gets; the results by its name."""
    seen: dict[str, T] = {}
    busy: set[str] = set()  # `look` may call the quantizer
    handles = []
    for name, quantizer in quantizers(network).items():

        def note(module: nn.Module, inputs: tuple[Any, ...], name: str = name) -> None:
            x = inputs[0]
            if name not in busy and isinstance(x, Tensor) and x.is_floating_point() and x.numel():
                busy.add(name)
                seen[name] = look(name, module, x.detach())  # type: ignore[arg-type]

        if quantizer.ready:
            handles.append(quantizer.register_forward_pre_hook(note))
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def _scale_and_clipping(name: str, quantizer: Quantizer, x: Tensor) -> tuple[float | None, float | None]:
    steps = in_steps(quantizer, F.relu(x) if quantizer.fuses_relu else x)
    return (None, None) if steps is None else (float(quantizer.qparams()[0].mean()), clipped_share(quantizer, steps))


@dataclass
class ScaleRecorder:
    """Records scales and clip rates about `POINTS` times in a fit, with a copy of the network and a few samples.

    The samples are the same at each step, and the network is in evaluation mode, so the training is not touched.
    """

    samples: tuple[Any, ...] = ()
    steps: list[int] = field(default_factory=list)
    tensors: dict[str, Trajectory] = field(default_factory=dict)

    def see(self, trainer: L.Trainer, network: nn.Module) -> None:
        """Add a point if this step of the fit is to be recorded. Without samples nothing is."""
        step, total = trainer.global_step, trainer.estimated_stepping_batches
        every = max(1, int(total) // POINTS) if math.isfinite(total) and total > 0 else 100
        if self.samples and (step % every == 0 or step == total) and step not in self.steps:
            self.record(step, network)
            values = {f"scale/{name}": tensor.scales[-1] for name, tensor in self.tensors.items()}
            values |= {f"clipped/{name}": tensor.clipped[-1] for name, tensor in self.tensors.items()}
            log_point(trainer.loggers, values, step)

    @torch.no_grad()
    def record(self, step: int, network: nn.Module) -> None:
        """Add a point. network: is not changed; it may be anywhere."""
        copy = copy_model(network).cpu().float().eval()
        set_compiled_call(copy, None)
        found = quantizers(copy)
        if len(found) > MOST_TENSORS:
            return
        with _seen(copy, _scale_and_clipping) as seen:
            copy(*self.samples)
        missing: list[float | None] = [None] * len(self.steps)
        self.steps.append(step)
        for name, (scale, clipped) in seen.items():
            label = label_of(name, found[name])
            kind: TensorKind = "weight" if found[name].is_weight else "activation"
            tensor = self.tensors.setdefault(label, Trajectory(label, kind, [*missing], [*missing]))
            tensor.scales.append(scale)
            tensor.clipped.append(clipped)

    def state(self) -> dict[str, Any]:
        """The state for a checkpoint, in plain numbers."""
        return Trajectories(self.steps, list(self.tensors.values())).to_dict()

    def restore(self, state: dict[str, Any]) -> None:
        """Continue from what `state` returned in the interrupted fit."""
        if not state:
            return
        record = Trajectories.from_dict(state)
        self.steps = list(record.steps)
        self.tensors = {tensor.name: tensor for tensor in record.tensors}

    def summary(self) -> Trajectories | None:
        """The record for the report; None if nothing was recorded."""
        if len(self.steps) < 2:
            return None
        whole = [tensor for tensor in self.tensors.values() if len(tensor.scales) == len(self.steps)]
        return Trajectories(self.steps, whole)


def confusion(measured: Measured) -> Confusion | None:
    """The confusion matrix of the row of the artefact; None without classes, or with too many."""
    entry, found = of_artefact(measured)
    predictions, labels = found.predictions, found.labels
    if predictions is None or labels is None or not len(labels) or labels.min() < 0:
        return None
    classes = int(max(predictions.max(), labels.max())) + 1
    if classes > MOST_CLASSES:
        return None
    counts = torch.bincount(labels.long() * classes + predictions.long(), minlength=classes**2)
    return Confusion(entry.name, counts.reshape(classes, classes).tolist())
