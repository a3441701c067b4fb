"""A table of the quantized tensors of a model, and a list of those that stay in float."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field

from torch import nn

from qat.granularity import PerBlock, PerChannel, PerGroup
from qat.nn import (
    as_quantized,
    has_quantized_matrices,
    is_layer,
    is_quantized,
    layer_type,
    matrix_type,
    parameters_of_weight,
    quantized_weights,
)
from qat.quantizers import Quantizer, ScaledFloat
from qat.quantizers.codebook import Codebook
from qat.transform.integer_share import IntegerShare, integer_share, parameters_of_artefact
from qat.transform.record import LAYERS, PreparedRecord, record_of


@dataclass(frozen=True)
class Line:
    """One line of the table. kind: "layer" (weight, input) or "site" (input). "float" where nothing is quantized."""

    name: str
    kind: str
    operation: str
    weight: str
    activation: str


@dataclass
class Inspection:
    """What `inspect` found; `str` gives it as text.

    Attributes:
        lines: every layer and site.
        float_edges: tensors and operations left in float.
        notes: sentences to show.
        capture: how the graph was captured, and why an earlier way did not serve; "" if the model is not prepared.
        share: how much of it is integer; None if the model is not prepared.
    """

    lines: list[Line]
    float_edges: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    capture: str = ""
    share: IntegerShare | None = None

    @property
    def facts(self) -> list[str]:
        """How it was captured, how much is integer, and a warning if that is little."""
        shares = () if self.share is None else (str(self.share), self.share.warning)
        return [text for text in (self.capture, *shares) if text]

    def __str__(self) -> str:
        rows = [("name", "operation", "weight", "activation")]
        rows += [(line.name, line.operation, line.weight, line.activation) for line in self.lines]
        widths = [max(len(row[i]) for row in rows) for i in range(4)]
        text = "\n".join("  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows)
        in_float = ", ".join(self.float_edges) or "nothing"
        return "\n".join([text, f"stays in float: {in_float}", *self.facts, *self.notes])


def inspect(model: nn.Module) -> Inspection:
    """The table of a prepared model, and how much of it is integer. In any other model everything is float.

    Warns if less than 90 % of the multiply-adds are in integers although the policy quantizes activations. They are counted
    when the model is prepared with example inputs, or calibrated.
    """
    found = table(model)
    if found.share is not None and found.share.warning:
        warnings.warn(found.share.warning, stacklevel=2)
    return found


def table(model: nn.Module) -> Inspection:
    """`inspect`, without its warning."""
    record = record_of(model)
    lines = []
    for name, module in model.named_modules():
        if is_quantized(module):
            layer = as_quantized(module)
            operation = layer_type(module).__name__
            weight, activation = describe(layer.weight_quantizer), describe(layer.input_quantizer)
            lines.append(Line(name, "layer", operation, weight, activation if layer.input_quantizer else ""))
        elif has_quantized_matrices(module):
            kind = matrix_type(module)
            lines += [
                Line(f"{name}.{key}", "layer", kind, describe(quantizer), _of_input(module))
                for key, _, quantizer in quantized_weights(module)
            ]
        elif is_layer(module):
            lines.append(Line(name, "layer", layer_type(module).__name__, "float", ""))
        elif isinstance(module, Quantizer) and name.startswith("sites."):
            lines.append(Line(name.removeprefix("sites."), "site", "tensor", "", describe(module)))
    if record is None:
        return Inspection(lines, ["everything"] if all(line.weight == "float" for line in lines) else [])
    return Inspection(lines, record.float_edges, record.notes, _capture(record), integer_share(model, record))


def _capture(record: PreparedRecord) -> str:
    why = f", {'although' if record.way == 'torch.fx' else 'because'} {record.reason}" if record.reason else ""
    return f"captured {'' if record.way == LAYERS else 'with '}{record.way}{why}"


def _of_input(module: nn.Module) -> str:
    quantizer = getattr(module, "input_quantizer", None)
    return "" if quantizer is None else describe(quantizer)


def weights_in_float(model: nn.Module, named: int = 3) -> list[str]:
    """At most one sentence, about weight matrices that the table leaves out (embeddings, attention, recurrent layers, ...).

    named: how many of them the sentence names, the largest first.
    """
    layers = [module for module in model.modules() if is_layer(module) or is_quantized(module)]
    in_table = {id(parameter) for layer in layers for parameter in parameters_of_weight(layer)}
    in_table |= {id(weight) for module in model.modules() for _, weight, _ in quantized_weights(module)}
    in_artefact = parameters_of_artefact(model)
    matrices = {
        n: p for n, p in model.named_parameters() if p.ndim > 1 and "quantizer" not in n and id(p) in in_artefact
    }
    found = {name: parameter.numel() for name, parameter in matrices.items() if id(parameter) not in in_table}
    if not found:
        return []
    share = sum(found.values()) / sum(p.numel() for p in matrices.values())
    largest = sorted(found, key=lambda name: -found[name])
    more = f" and {len(found) - named} more" if len(found) > named else ""
    return [f"weights of other layers stay in float, {share:.0%} of all: {', '.join(largest[:named])}{more}."]


def describe(quantizer: Quantizer | None) -> str:
    """A short text: "int4 per channel, LSQ", or "4 bits of int8 per channel, APoT" if the levels are codes of 8 bits.

    >>> describe(None)
    'float'
    """
    if quantizer is None:
        return "float"
    spec = quantizer.spec
    where = _scales_of(quantizer)
    if isinstance(quantizer, ScaledFloat):
        return f"{quantizer.format_name} {where}, {type(quantizer).__name__}"
    shape = "" if spec.symmetric else " affine"
    effective = f"{quantizer.bits} bits of " if isinstance(quantizer, Codebook) else ""
    return (
        f"{effective}{'int' if spec.grid.signed else 'uint'}{spec.grid.bits} {where}{shape}, {type(quantizer).__name__}"
    )


def _scales_of(quantizer: Quantizer) -> str:
    match quantizer.spec.granularity:
        case PerChannel():
            return "per channel"
        case PerGroup(size):
            return f"per group of {size}"
        case PerBlock(None):
            return "per token"
        case PerBlock(size):
            return f"in blocks of {size}"
        case _:
            return "per tensor"
