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

    The model runs in evaluation mode without gradients (BatchNorm keeps its statistics), and every quantizer sees float
    tensors. Ranges that were calibrated, learned or loaded before stay. Training modes are restored.

    With a process group (DDP) every process must call it, with the same weights and its own share of the batches, which may
    be empty. The observations of all processes are merged, so that all set the same ranges, to the bit: those that one
    process would find with all the batches (up to the order of summation for MeanAbs; MovingAverage depends on the order of
    the batches).

    Args:
        model: a prepared module.
        batches: model inputs. Each batch is a tensor, a sequence of arguments (those that forward does not take, such as
            labels, are ignored) or a dict of keyword arguments.
        forward: runs the model on a batch, if that is not `model(*batch)`.

    Returns:
        The number of quantizers that were calibrated; if it is 0, no batch was consumed.

    Raises:
        ValueError: the model has no quantizers, or a quantizer saw NaN or no data (no batches, or a layer that never runs).
        RuntimeError: the processes do not have the same quantizers to calibrate.
    """
    check_batches(batches)
    found = quantizers(model)
    if not found:
        raise ValueError("the model has no quantizers: call qat.prepare(model, policy) first and calibrate its result.")
    uncalibrated = {name: q for name, q in found.items() if not q.ready}
    check_same_quantizers(uncalibrated)
    if not uncalibrated:
        return 0
    for quantizer in uncalibrated.values():
        quantizer.observer.reset()  # drops what a failed calibration left behind
    with torch.no_grad(), training_mode(model, False), mode(model, Mode.OBSERVE):
        for module in filter(is_quantized, model.modules()):
            layer = as_quantized(module)
            if layer.weight_quantizer is not None:
                layer.weight_quantizer(layer.weight)
        with weight_quantizers_off(model):
            for batch in batches:
                (forward or call_model)(model, batch)
        weights = set(_weight_quantizers(model))  # observed alike in every process
        merge_observers(q for q in uncalibrated.values() if q not in weights)
        for name, quantizer in uncalibrated.items():
            try:
                quantizer.finish_observing()
            except (RuntimeError, ValueError) as error:
                raise ValueError(f"quantizer {name!r} cannot be calibrated: {error}") from None
    return len(uncalibrated)


def check_batches(batches: Any) -> None:
    """Raise ValueError for a tensor, whose samples would count as batches."""
    if isinstance(batches, Tensor):
        raise ValueError(f"batches is one tensor of shape {tuple(batches.shape)}: write a list of batches, [tensor].")


def weight_quantizers_off(model: nn.Module) -> Any:
    """Turn weight quantizers off inside the `with`: a weight is observed once, not once per batch."""
    return mode(nn.ModuleList(_weight_quantizers(model)), Mode.OFF)


def positional_arguments(model: nn.Module, batch: Any) -> tuple[Any, ...]:
    """Positional arguments of `model` from a batch: a tensor, or as many elements as forward takes, without labels."""
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


def call_model(model: nn.Module, batch: Any) -> object:
    """Run the model on one batch: a tensor, a sequence that begins with the inputs, or a dict of them."""
    return model(**batch) if isinstance(batch, dict) else model(*positional_arguments(model, batch))
