"""What quantizing each tensor alone does to the outputs and to the loss."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qat.arguments import is_number
from qat.contexts import training_mode
from qat.messages import shown, type_of
from qat.quantizers import Mode, Quantizer
from qat.torch_private import tree_leaves
from qat.transform import mode, quantizers
from qat.transform.batches import call_model

HIGHEST = 200.0
"""Decibels that stand for equal outputs."""


@dataclass(frozen=True)
class Sensitivity:
    """What quantizing one thing alone does.

    Attributes:
        name: of the layer or site; "" if it is more than one.
        tensor: "weight", "activation", "weights", "activations", or "all".
        format: "int4" and the like; "".
        sqnr_db: signal-to-noise ratio of the outputs against those of the float network, in dB; the lower, the worse.
        loss_change: the loss minus that of the float network.
    """

    name: str
    tensor: str
    format: str
    sqnr_db: float
    loss_change: float


def measure_sensitivity(
    prepared: nn.Module, batches: Sequence[Any], loss: Callable[[Any, Any], Tensor] | None = None
) -> list[Sensitivity]:
    """What all quantizers do, those of weights, those of activations, and each one alone, sorted, the most harmful first.

    Args:
        prepared: a calibrated network.
        batches: the same for each.
        loss: of (outputs, batch); None: see `qat.inspect`.

    Raises:
        ValueError: there is no loss, and the outputs hold no floats.
    """
    found = {name: q for name, q in quantizers(prepared).items() if q.ready}
    with torch.no_grad(), training_mode(prepared, False), mode(prepared, Mode.OFF):
        run = PartialRuns(prepared, batches, loss)
        weights = [q for q in found.values() if q.is_weight]
        activations = [q for q in found.values() if not q.is_weight]
        groups = {"all": [*weights, *activations], "weights": weights, "activations": activations}
        together = [
            Sensitivity("", what, "", *run.with_quantizers(chosen)) for what, chosen in groups.items() if chosen
        ]
        alone = [
            Sensitivity(
                plain_name(name),
                "weight" if q.is_weight else "activation",
                f"{'int' if q.spec.grid.signed else 'uint'}{q.spec.grid.bits}",
                *run.with_quantizers([q]),
            )
            for name, q in found.items()
        ]
    return together + sorted(alone, key=lambda s: s.sqnr_db)


def plain_name(name: str) -> str:
    """The name of a quantizer's layer or site.

    >>> plain_name("sites.relu"), plain_name("conv1.weight_quantizer")
    ('relu', 'conv1')
    """
    return name.removeprefix("sites.").removesuffix(".weight_quantizer").removesuffix(".input_quantizer")


def check_loss(loss: object) -> None:
    """Raise ValueError for a loss that is not a function."""
    if loss is not None and not callable(loss):
        raise ValueError(
            f"loss={shown(loss)} is not possible: write a function of (outputs, batch) that returns a tensor."
        )


class PartialRuns:
    """Runs of a network with some of its quantizers on, compared with a run with all of them off.

    Args:
        network: prepared and calibrated, in evaluation mode, with all quantizers off.
        batches: the same for each run.
        loss: of (outputs, batch); None: see `qat.inspect`.
        labels: whether, without a loss, classes at the end of a batch count. Otherwise the float network's outputs do.

    Raises:
        ValueError: there is no loss, and the outputs hold no floats.
    """

    def __init__(
        self,
        network: nn.Module,
        batches: Sequence[Any],
        loss: Callable[[Any, Any], Tensor] | None = None,
        labels: bool = True,
    ) -> None:
        self.network, self.batches, self.loss, self.labels = network, batches, loss, labels
        returned = [call_model(network, batch) for batch in batches]
        self.reference = [_outputs(r) for r in returned]
        if loss is None and not any(self.reference):
            raise ValueError(
                f"the outputs of {type(network).__name__} hold no floats, so that no change of them can be measured: "
                "return the scores beside them, or pass loss=..., a function of (outputs, batch)."
            )
        self.float_loss = self._mean_loss(returned if loss else self.reference)

    def with_quantizers(self, chosen: Iterable[Quantizer]) -> tuple[float, float]:
        """SQNR in dB and change of the loss with these quantizers on."""
        chosen = list(chosen)
        for quantizer in chosen:
            quantizer.mode = Mode.QUANTIZE
        returned = [call_model(self.network, batch) for batch in self.batches]
        for quantizer in chosen:
            quantizer.mode = Mode.OFF
        outputs = [_outputs(r) for r in returned]
        change = self._mean_loss(returned if self.loss else outputs) - self.float_loss
        return _decibels(self.reference, outputs), change

    def _mean_loss(self, outputs: Sequence[Any]) -> float:
        losses = [
            _number(self.loss(output, batch))
            if self.loss
            else float(_loss(output, reference, batch if self.labels else None))
            for output, reference, batch in zip(outputs, self.reference, self.batches, strict=True)
        ]
        return sum(losses) / len(losses)


def _number(loss: object) -> float:
    """What the user's loss returned, which must be one number."""
    if isinstance(loss, Tensor) and loss.numel() == 1 and not loss.is_complex():
        return float(loss)
    if is_number(loss):
        return float(loss)
    what = f"a tensor of shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else type_of(loss)
    raise ValueError(
        f"loss returned {what}: write a function of (outputs, batch) that returns one number, loss.mean()."
    )


def _outputs(returned: Any) -> list[Tensor]:
    return [x.float() for x in tree_leaves(returned) if isinstance(x, Tensor) and x.is_floating_point()]


def _loss(output: list[Tensor], reference: list[Tensor], batch: Any) -> Tensor:
    """Cross-entropy with classes; else the Kullback-Leibler divergence of scores; else the relative squared error."""
    scores, wanted = output[0], reference[0]
    if scores.ndim == 2 and scores.shape[1] > 1:
        labels = batch[-1] if isinstance(batch, tuple | list) and len(batch) > 1 else None
        if isinstance(labels, Tensor) and labels.dtype == torch.int64 and labels.shape == scores.shape[:1]:
            return F.cross_entropy(scores, labels)
        return F.kl_div(scores.log_softmax(1), wanted.log_softmax(1), log_target=True, reduction="batchmean")
    return (scores - wanted).square().sum() / wanted.square().sum().clamp_min(1e-12)


def _decibels(reference: Sequence[Sequence[Tensor]], outputs: Sequence[Sequence[Tensor]]) -> float:
    pairs = [
        (a.double(), b.double()) for x, y in zip(reference, outputs, strict=True) for a, b in zip(x, y, strict=True)
    ]
    signal = sum(float(a.square().sum()) for a, _ in pairs)
    noise = sum(float((a - b).square().sum()) for a, b in pairs)
    if not math.isfinite(noise) or not signal:
        return -HIGHEST if noise else HIGHEST
    return HIGHEST if not noise else min(HIGHEST, 10 * math.log10(signal / noise))
