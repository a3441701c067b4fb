"""What costs accuracy or speed, each with the line of a policy that mends it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from qat.doctor.diagnosis import Finding
from qat.doctor.ranges import Range, watch_ranges
from qat.doctor.sensitivity import Sensitivity, plain_name
from qat.granularity import PerTensor
from qat.integer import convert
from qat.nn import as_quantized, is_quantized
from qat.quantizers import Quantizer
from qat.transform import Policy, quantizers
from qat.transform.inspect import Inspection, table
from qat.transform.integer_share import multiply_adds_in_float
from qat.transform.record import record_of
from qat.transform.target_grids import target_grids

HARMFUL_DB = 20.0
"""SQNR of the outputs: a tensor is named if quantizing it alone leaves less."""
FAR = 30.0
"""A range that reaches this many times the magnitude below which 99.9 % of the values lie is set by a few of them."""
DEAD = 1e-7
"""A channel whose scale is below this, relative to the largest of its weight, is all but zero."""
NAMED = 5
"""How many layers or sites a finding names at most."""
NO_LINE = "no line: write it in a form that has integers (docs/integer_arithmetic.md)"


def find_quickly(prepared: nn.Module, batches: Iterable[Any], integer: nn.Module | None = None) -> list[Finding]:
    """What can be seen without quantizing each tensor alone.

    Args:
        prepared: a network whose quantizers have ranges.
        batches: a few, as for `qat.calibrate`.
        integer: what `qat.convert` made of it; None: it is converted here.

    Returns:
        The findings, those that cost accuracy first; none if `prepared` has no record of how it was prepared.
    """
    record = record_of(prepared)
    if record is None:
        return []
    return find_all(prepared, record.policy, table(prepared), watch_ranges(prepared, batches), [], integer)


def find_all(
    prepared: nn.Module,
    policy: Policy,
    inspection: Inspection,
    ranges: Mapping[str, Range],
    sensitivity: Sequence[Sensitivity],
    integer: nn.Module | None = None,
) -> list[Finding]:
    """All findings, those that cost accuracy first."""
    found = quantizers(prepared)
    return [
        *_sensitive(sensitivity, found),
        *_wrong_signs(found, ranges, policy),
        *_scales(found, ranges),
        *_depthwise_per_tensor(prepared),
        *_without_rule(inspection, policy),
        *_float_edges(prepared, inspection, policy),
        *_saturation(prepared, integer),
    ]


def _rule(layer: str, weight: str, activation: str) -> str:
    """The line of a policy that sets a rule for one layer."""
    name = layer.replace(".", "_") or "model"
    return f"rules: {{{name}: {{match: {layer}, weight: {weight}, activation: {activation}}}}}"


def _sensitive(sensitivity: Sequence[Sensitivity], found: Mapping[str, Quantizer]) -> list[Finding]:
    """Tensors that alone spoil the outputs."""
    by_name = {(plain_name(name), q.is_weight): q for name, q in found.items()}
    findings = []
    for s in sensitivity:
        if not s.name or s.sqnr_db >= HARMFUL_DB:
            continue
        quantizer = by_name[s.name, s.tensor == "weight"]
        bits = min(8, quantizer.spec.grid.bits + 2)
        text = f"{s.name}: its {s.tensor} in {s.format} alone leaves {s.sqnr_db:.1f} dB (loss {s.loss_change:+.4f})"
        if quantizer.spec.grid.bits >= 8:
            mends = _rule(s.name, "null", "null") if s.tensor == "weight" else "activation: {observer: Percentile}"
        elif s.tensor == "weight":
            mends = _rule(s.name, f"{{bits: {bits}}}", f"{{bits: {bits}}}")
        else:
            mends = f"residual_bits: 8, or {_rule(s.name, '{bits: 8}', '{bits: 8}')}"
        findings.append(Finding("sensitive", s.name, text, mends))
    return findings[: 2 * NAMED]


def _wrong_signs(found: Mapping[str, Quantizer], ranges: Mapping[str, Range], policy: Policy) -> list[Finding]:
    """Grids that cut off negative values, or keep codes for negative values that never come, unless the target needs them."""
    findings = []
    signed_by_target = policy.target is not None and target_grids(policy.target).zero_is_code_0
    for name, values in ranges.items():
        grid, spec = found[name].spec.grid, found[name].spec
        if found[name].is_dynamic:
            continue
        cuts = not grid.signed and spec.symmetric and values.negative > 0.01
        wastes = grid.signed and spec.symmetric and values.lowest >= 0 and values.highest > 0
        if not cuts and (not wastes or (signed_by_target and grid.bits == 8)):
            continue
        text = (
            f"{plain_name(name)}: {values.negative:.0%} of its values are negative, and its grid is unsigned"
            if cuts
            else f"{plain_name(name)}: it is never negative, and its grid is signed: half of the codes are unused"
        )
        explicit = [key for key, rule in policy.rules.items() if rule.activation and rule.activation.signed is not None]
        mends = (
            f"rules.{explicit[0]}.activation.signed: null"
            if explicit
            else f"activation: {{signed: {str(cuts).lower()}}}"
        )
        findings.append(Finding("wrong_sign", plain_name(name), text, mends))
    return findings


def _scales(found: Mapping[str, Quantizer], ranges: Mapping[str, Range]) -> list[Finding]:
    """Scales that are not finite, ranges of zeros alone, and ranges that a few values stretch."""
    findings = []
    for name, quantizer in found.items():
        if not quantizer.ready or quantizer.is_dynamic:
            continue
        scale = quantizer.qparams().scale.float()
        where, kind = plain_name(name), "weight" if quantizer.is_weight else "activation"
        if not bool(torch.isfinite(scale).all()):
            text = f"{where}: a scale of its {kind} is not finite"
            findings.append(Finding("exploding_scale", where, text, f"{kind}: {{observer: MinMax}}"))
        elif quantizer.is_weight and scale.numel() > 1 and int(dead := (scale < DEAD * scale.max()).sum()):
            text = f"{where}: {int(dead)} of {scale.numel()} channels of its weight are dead (all but zero)"
            mends = f"{kind}: {{granularity: per_tensor}}, or prune these channels"
            findings.append(Finding("dead_scale", where, text, mends))
        values = ranges.get(name)
        if values is None:
            continue
        reach = max(abs(values.lowest), abs(values.highest))
        if values.lowest == values.highest == 0:
            text = f"{where}: it is zero for all of these data, so its range is a guess"
            mends = "calibration with other data (calibration_images, or --data)"
            findings.append(Finding("dead_scale", where, text, mends))
        elif (
            values.usual
            and reach > FAR * values.usual
            and float(scale.max()) * quantizer.spec.grid.qmax > values.usual * FAR / 2
        ):
            text = f"{where}: its range reaches {reach:.3g}, and 99.9 % of its values lie below {values.usual:.3g}"
            mends = "activation: {observer: {_target_: Percentile, percentile: 99.9}}"
            findings.append(Finding("exploding_scale", where, text, mends))
    return findings


def _depthwise_per_tensor(prepared: nn.Module) -> list[Finding]:
    """Depthwise convolutions whose channels, as different as they are, share a scale."""
    findings = []
    for name, module in prepared.named_modules():
        if not is_quantized(module) or (quantizer := as_quantized(module).weight_quantizer) is None:
            continue
        groups = getattr(module, "groups", 1)
        if (
            groups > 1
            and groups == getattr(module, "in_channels", 0)
            and isinstance(quantizer.spec.granularity, PerTensor)
        ):
            largest = module.get_parameter("weight").detach().abs().flatten(1).amax(1)
            spread = float(largest.max() / largest.clamp_min(1e-12).min())
            text = f"{name}: depthwise, and {groups} channels that differ {spread:.0f}-fold share one scale"
            findings.append(Finding("depthwise_per_tensor", name, text, "weight: {granularity: per_channel}"))
    return findings


def _without_rule(inspection: Inspection, policy: Policy) -> list[Finding]:
    """Layers whose weight stays in float because no rule quantizes it."""
    bits = next((rule.weight.bits for rule in policy.rules.values() if rule.weight), 8)
    activation = next((rule.activation.bits for rule in policy.rules.values() if rule.activation), None)
    inputs = "null" if activation is None else f"{{bits: {activation}}}"
    return [
        Finding(
            "no_rule",
            line.name,
            f"{line.name}: no rule touches this {line.operation}",
            _rule(line.name, f"{{bits: {bits}}}", inputs),
        )
        for line in inspection.lines
        if line.kind == "layer" and line.weight == "float"
    ]


def _float_edges(prepared: nn.Module, inspection: Inspection, policy: Policy) -> list[Finding]:
    """What stays in float although the policy quantizes activations: products, the largest first, and other operations."""
    if all(rule.activation is None for rule in policy.rules.values()):
        return []
    record = record_of(prepared)
    assert record is not None
    total = sum(record.multiply_adds.values())
    in_float = multiply_adds_in_float(prepared, record) if total else {}
    findings = []
    for described in sorted(in_float, key=lambda text: -in_float[text])[:NAMED]:
        name, _, why = described.partition(" (")
        reason, _, mends = why.removesuffix(")").partition(": ")
        if reason == "no rule":  # is a finding of its own
            continue
        text = f"{name}: {in_float[described] / total:.0%} of all multiply-adds are computed in float here: {reason}"
        findings.append(Finding("float_edges", name, text, mends or NO_LINE))
    converts = any(rule.activation is not None and not rule.activation.is_dynamic for rule in policy.rules.values())
    if inspection.float_edges and converts:
        named = ", ".join(inspection.float_edges[:NAMED])
        more = f" and {len(inspection.float_edges) - NAMED} more" if len(inspection.float_edges) > NAMED else ""
        verb = "stays" if len(inspection.float_edges) == 1 else "stay"
        text = f"{named}{more} {verb} in float: values are converted there and back"
        mends = "residual_bits: 8" if policy.residual_bits is None else NO_LINE
        findings.append(Finding("float_edges", inspection.float_edges[0], text, mends))
    return findings


def _saturation(prepared: nn.Module, integer: nn.Module | None) -> list[Finding]:
    """Layers whose products overflow 16 bits in pairs, as processors without VNNI add them."""
    try:
        integer = convert(prepared) if integer is None else integer
    except (ValueError, RuntimeError):  # convert itself says what it refuses
        return []
    saturating = {name for name, module in integer.named_modules() if getattr(module, "may_saturate", False)}
    all_layers = [name for name, module in prepared.named_modules() if is_quantized(module)]
    layers = [name for name in all_layers if name.replace(".", "_") in saturating or name in saturating]
    if not layers:
        return []
    more = f" and {len(layers) - NAMED} more" if len(layers) > NAMED else ""
    text = (
        f"{', '.join(layers[:NAMED])}{more}: on x86 processors without VNNI, pairs of products saturate, so that their exact "
        "form is needed, which is slower"
    )
    return [Finding("saturation", layers[0], text, "reduce_range: true")]
