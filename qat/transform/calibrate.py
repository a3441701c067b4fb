"""Give quantizers their first range: values only, in place."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from qat.contexts import training_mode
from qat.nn import as_quantized, is_quantized
from qat.quantizers import Mode, Quantizer
from qat.transform.distributed import check_same_quantizers, merge_observers
from qat.transform.mode import mode, quantizers


def calibrate(
    model: nn.Module, batches: Iterable[Any], forward: Callable[[nn.Module, Any], object] | None = None
) -> int:
    """Run `batches` through the float network and set the range of every quantizer that has none yet. In place.

    The network runs in evaluation mode without gradients (BatchNorm keeps its statistics), every quantizer sees float
    tensors, and ranges that were calibrated, learned or loaded before stay. Training modes are restored.

    With a process group (DDP) every process must call it, with the same weights and its own share of the batches, which may
    be none. What all of them observed is merged, so that all set the same ranges, to the bit: those of one process with all
    the batches (sums, of MeanAbs, up to the order of summation; MovingAverage depends on the order of the batches).

    Args:
        model: a prepared module.
        batches: model inputs: a tensor, a sequence of arguments (what forward does not take, such as labels, is left over)
            or a dict of keyword arguments each.
        forward: how a batch goes through the model, where that is not `model(*batch)`.

    Returns:
        The number of quantizers that were set; 0 consumes no batch.

    Raises:
        ValueError: the model has no quantizers, or a quantizer saw no data (no batches, or a layer that never runs), or NaN.
        RuntimeError: the processes do not have the same quantizers to calibrate.
    """
    check_batches(batches)
    found = quantizers(model)
    if not found:
        raise ValueError("the model has no quantizers: call qat.prepare(model, policy) first and calibrate its result.")
    waiting = {name: q for name, q in found.items() if not q.ready}
    check_same_quantizers(waiting)
    if not waiting:
        return 0
    for quantizer in waiting.values():
        quantizer.observer.reset()  # of a calibration that failed
    with torch.no_grad(), training_mode(model, False), mode(model, Mode.OBSERVE):
        for module in filter(is_quantized, model.modules()):
            layer = as_quantized(module)
            if layer.weight_quantizer is not None:
                layer.weight_quantizer(layer.weight)
        with weight_quantizers_off(model):
            for batch in batches:
                (forward or call)(model, batch)
        weights = set(_weight_quantizers(model))  # observed alike everywhere
        merge_observers(q for q in waiting.values() if q not in weights)
        for name, quantizer in waiting.items():
            try:
                quantizer.finish_observing()
            except (RuntimeError, ValueError) as error:
                raise ValueError(f"quantizer {name!r} cannot be calibrated: {error}") from None
    return len(waiting)


def check_batches(batches: Any) -> None:
    """Raises ValueError for a tensor, whose samples would count as batches."""
    if isinstance(batches, Tensor):
        raise ValueError(f"batches is one tensor of shape {tuple(batches.shape)}: write a list of batches, [tensor].")


def weight_quantizers_off(model: nn.Module) -> Any:
    """A `with` in which weight quantizers do nothing: a weight is observed once, not once a batch."""
    return mode(nn.ModuleList(_weight_quantizers(model)), Mode.OFF)


def arguments(model: nn.Module, batch: Any) -> tuple[Any, ...]:
    """Positional arguments of `model` from a batch: a tensor, or as many parts as forward takes; labels are left over."""
    if isinstance(batch, Tensor):
        return (batch,)
    parameters = inspect.signature(model.forward).parameters.values()
    if any(p.kind is p.VAR_POSITIONAL for p in parameters):
        return tuple(batch)
    takes = sum(p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD) for p in parameters)
    return tuple(batch)[:takes]


def _weight_quantizers(model: nn.Module) -> Iterator[Quantizer]:
    for module in filter(is_quantized, model.modules()):
        if (quantizer := as_quantized(module).weight_quantizer) is not None:
            yield quantizer


def call(model: nn.Module, batch: Any) -> object:
    """The model on one batch: a tensor, a sequence that begins with the inputs, or a dict of them."""
    return model(**batch) if isinstance(batch, dict) else model(*arguments(model, batch))
