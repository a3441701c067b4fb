"""What fewer bits of each tensor do to a network, measured or estimated, for every width."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from glob import escape
from typing import Any, Literal

import torch
from torch import Tensor, nn

from qat.contexts import training_mode
from qat.doctor.sensitivity import PartialRuns
from qat.quantizers import Mode, Quantizer
from qat.search.fisher import fisher_harms
from qat.search.layers import Layer, find_layers
from qat.transform import Policy, calibrate, mode, prepare
from qat.transform.batches import call_of
from qat.transform.rule import Rule

Method = Literal["measured", "fisher"]
"""measured: the divergence of the outputs from those of the float network, with this tensor alone quantized. fisher: estimated
to second order, by the diagonal Fisher information of FIT (Zandonati et al. 2022, https://arxiv.org/abs/2210.08502), in place
of HAWQ-V2's mean trace of the Hessian (Dong et al. 2020, https://arxiv.org/abs/1911.03852)."""
METHODS = {
    "measured": "the divergence of the outputs from the float network's with this tensor alone quantized, measured",
    "fisher": "half of the squared rounding errors times the diagonal Fisher information (FIT, Zandonati et al. 2022)",
}
Widths = tuple[int | None, int | None]
"""Bits of the weight and of the input; None: those of the policy."""


@dataclass(frozen=True)
class Harms:
    """What each tensor does at each width, and the bits in which its codes are stored.

    Attributes:
        weights: (layer, bits) -> the harm of its weight.
        inputs: (layer, bits) -> the harm of its input.
        stored: (layer, bits) -> the bits of a stored code; more than `bits` if the quantizer has levels of its own.
    """

    weights: Mapping[tuple[str, int], float]
    inputs: Mapping[tuple[str, int], float]
    stored: Mapping[tuple[str, int], int]


def with_bits(policy: Policy, rules: Mapping[str, Rule], widths: Mapping[str, Widths], name: str) -> Policy:
    """The policy with a rule of its own for each layer in `widths`.

    Args:
        policy: its rules come first.
        rules: layer -> the rule that holds for it in `policy`.
        widths: layer -> its bits.
        name: of the new policy.
    """
    own = {}
    for layer, (weight, activation) in widths.items():
        rule, key = rules[layer], layer or "model"
        weight_rule = rule.weight if weight is None or rule.weight is None else replace(rule.weight, bits=weight)
        input_rule = (
            rule.activation
            if activation is None or rule.activation is None or rule.activation.quantizer_class.for_layer_inputs
            else replace(rule.activation, bits=activation)
        )
        while key in policy.rules:
            key += "_bits"
        own[key] = Rule(exactly(layer), weight_rule, input_rule)
    return replace(policy, rules={**policy.rules, **own}, name=name)


def exactly(layer: str) -> str:
    """A match for this layer alone.

    >>> exactly("layer1.0.conv1"), exactly("first")
    ('layer1.0.conv1', '[f]irst')
    """
    if layer in ("first", "last") or layer.startswith("type:"):
        return f"[{layer[0]}]{escape(layer[1:])}"
    return escape(layer)


@contextmanager
def prepared_with(model: nn.Module, policy: Policy, batches: Sequence[Any]) -> Iterator[nn.Module]:
    """A prepared, calibrated copy in evaluation mode, with its quantizers off inside the `with`."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about training, and these networks are not trained
        prepared = prepare(model, policy, call_of(model, batches[0]).example_inputs).eval()
        calibrate(prepared, batches)
    with training_mode(prepared, False), mode(prepared, Mode.OFF):
        yield prepared


def find_harms(
    model: nn.Module,
    policy: Policy,
    searched: Sequence[Layer],
    widths: tuple[Sequence[int], Sequence[int]],
    batches: Sequence[Any],
    method: Method = "measured",
    loss: Callable[[Any, Any], Tensor] | None = None,
) -> Harms:
    """The harm of the weights and of the inputs of each layer, at each width.

    A network is prepared once for each width. No width counts as less harmful than a wider one, so noise is never preferred.

    Args:
        model: in float.
        policy: says how tensors are quantized, but for the bits.
        searched: the layers.
        widths: of weights and of inputs; the latter may be empty.
        batches: as for `qat.calibrate`.
        method: "measured" runs the network for each tensor and width; "fisher" a few times for each width.
        loss: of (outputs, batch), for "measured"; None: the divergence from the float network.
    """
    weights: dict[tuple[str, int], float] = {}
    inputs: dict[tuple[str, int], float] = {}
    stored: dict[tuple[str, int], int] = {}
    rules, names = {layer.name: layer.rule for layer in searched}, [layer.name for layer in searched]
    for bits in sorted({*widths[0], *widths[1]}, reverse=True):
        own: Widths = (bits if bits in widths[0] else None, bits if bits in widths[1] else None)
        trial = with_bits(policy, rules, dict.fromkeys(names, own), policy.name)
        with prepared_with(model, trial, batches) as prepared:
            found = [layer for layer in find_layers(prepared) if layer.name in rules]
            tensors = {(layer.name, "weight"): layer.weights for layer in found if own[0] and layer.weights}
            tensors |= {(layer.name, "input"): tuple(layer.inputs.values()) for layer in found if own[1]}
            harms = _of_tensors(prepared, tensors, batches, method, loss)
            stored |= {
                (layer.name, bits): max(q.spec.grid.bits for q in layer.weights) for layer in found if layer.weights
            }
        weights |= {(name, bits): harm for (name, tensor), harm in harms.items() if tensor == "weight"}
        inputs |= {(name, bits): harm for (name, tensor), harm in harms.items() if tensor == "input"}
    return Harms(_not_falling(weights), _not_falling(inputs), stored)


def _of_tensors(
    prepared: nn.Module,
    tensors: Mapping[tuple[str, str], tuple[Quantizer, ...]],
    batches: Sequence[Any],
    method: Method,
    loss: Callable[[Any, Any], Tensor] | None,
) -> dict[tuple[str, str], float]:
    """The harm of each group of quantizers."""
    if method == "fisher":
        of_quantizers = fisher_harms(prepared, {q for group in tensors.values() for q in group}, batches)
        return {key: sum(of_quantizers[q] for q in group) for key, group in tensors.items()}
    with torch.no_grad():
        runs = PartialRuns(prepared, batches, loss, labels=False)
        known: dict[tuple[int, ...], float] = {}  # layers that share an input have the same quantizers
        for group in tensors.values():
            ids = tuple(map(id, group))
            if ids not in known:
                known[ids] = max(0.0, runs.with_quantizers(group)[1]) if group else 0.0
        return {key: known[tuple(map(id, group))] for key, group in tensors.items()}


def measured_harm(
    model: nn.Module, policy: Policy, batches: Sequence[Any], loss: Callable[[Any, Any], Tensor] | None = None
) -> float:
    """What all quantizers of a policy together do to the outputs, without any training."""
    with prepared_with(model, policy, batches) as prepared, torch.no_grad():
        everything = [q for q in prepared.modules() if isinstance(q, Quantizer) and q.ready]
        return PartialRuns(prepared, batches, loss, labels=False).with_quantizers(everything)[1]


def _not_falling(harms: Mapping[tuple[str, int], float]) -> dict[tuple[str, int], float]:
    """Each harm, but not less than that of more bits."""
    return {
        (name, bits): max(h for (other, b), h in harms.items() if other == name and b >= bits) for name, bits in harms
    }
