"""Which parameters of a prepared network can be stored as codes, and how codes become a float parameter again.

A quantizer maps a cell of float values to each code. A file keeps the code, and the parameter comes back as a value in the
cell: its codes and what layers compute with it are the same, and training goes on from there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from qat.capture.install import installed_graph
from qat.contexts import training_mode
from qat.nn import as_quantized, is_quantized, parameters_of_weight, quantized_weights
from qat.quantizers import Quantizer
from qat.quantizers.weight_statistics import WeightStatisticsQuantizer

STEPS = (*[1.0] * 6, *[0.5] * 6, *[0.25] * 6, *[0.125] * 6)
"""Fractions of the missing amount that are tried in turn: adding all of it may jump over the sum that rounds correctly."""


@dataclass(frozen=True)
class WeightReader:
    """A module that computes with a quantized weight.

    Attributes:
        module: the module.
        quantizer: of the weight.
        name: of the weight in the module.
    """

    module: nn.Module
    quantizer: Quantizer
    name: str

    def weight(self) -> Tensor:
        """The weight as it is now, in the axes of the quantizer."""
        if is_quantized(self.module):
            return as_quantized(self.module).weight.detach()
        return self.module.get_parameter(self.name).detach()

    def reads(self) -> tuple[Tensor, Tensor]:
        """(codes, what the module computes with)."""
        weight = self.weight()
        return self.quantizer.quantize(weight), self.quantizer(weight)


@dataclass
class Master:
    """How a parameter is stored.

    Attributes:
        quantizers: whose codes are stored; two if a tied weight has different codes for its readers.
        codes: those of each.
        transposed: whether the weight is the parameter with its two axes exchanged.
        shift: for quantizers whose scale is a mean of the weights: what is added to the magnitude of the first weight in each
            row that is not 0, so that the mean is the scale again, to the bit. The scales of all have few bits then.
    """

    quantizers: list[Quantizer]
    codes: list[Tensor]
    transposed: bool = False
    shift: Tensor | None = None

    def value(self) -> Tensor:
        """The parameter, float32."""
        value = _common_value(self.quantizers, self.codes) if len(self.codes) > 1 else self._dequantized()
        return value.t().contiguous() if self.transposed else value

    def _dequantized(self) -> Tensor:
        (quantizer,), (codes,) = self.quantizers, self.codes
        if self.shift is None:
            return quantizer.dequantize(codes.float())
        granularity, shape = quantizer.spec.granularity, tuple(codes.shape)
        scale = granularity.broadcastable(_coarse(quantizer.qparams().scale, codes.numel()), shape)
        value = (granularity.view(codes.float()) * scale).reshape(shape)
        order = granularity.rows(torch.arange(codes.numel()).reshape(shape))
        signs = granularity.rows(torch.sign(codes.float()))
        first = (signs != 0).int().argmax(dim=1, keepdim=True)
        value.reshape(-1)[order.gather(1, first)[:, 0]] += signs.gather(1, first)[:, 0] * self.shift
        return value


def _coarse(scale: Tensor, n: int) -> Tensor:
    """The scales with few significant bits, so that sums of their multiples are exact; enough that the mean moves little."""
    bits = min(24, max(11, (n // len(scale)).bit_length() + 1))
    mantissa, exponent = torch.frexp(scale)
    return torch.ldexp(torch.round(mantissa * 2**bits) / 2**bits, exponent)


@dataclass
class Masters:
    """The parameters that are stored as codes, and the quantized weights that stay float.

    Attributes:
        found: name of a parameter -> how it is stored.
        kept: name of a quantized weight that stays a float parameter -> why.
    """

    found: dict[str, Master] = field(default_factory=dict)
    kept: dict[str, str] = field(default_factory=dict)


@torch.no_grad()
def find_masters(model: nn.Module) -> Masters:
    """Every parameter that codes can stand for. The model is the same afterwards."""
    names = {id(p): name for name, p in model.named_parameters()}
    parameters = dict(model.named_parameters())
    masters = Masters()
    readers: dict[str, list[WeightReader]] = {}
    with training_mode(model, False):
        for path, module in model.named_modules():
            for name, _, quantizer in quantized_weights(module):
                reader = WeightReader(module, quantizer, name)
                sources = parameters_of_weight(module) if is_quantized(module) else [module.get_parameter(name)]
                if len(sources) == 1 and id(sources[0]) in names:
                    readers.setdefault(names[id(sources[0])], []).append(reader)
                else:
                    masters.kept[f"{path}.{name}"] = "it is computed of several parameters"
        for name, found in readers.items():
            if _is_read_in_float(model, name, [reader.module for reader in found]):
                masters.kept[name] = "it is also read in float"
            elif (master := _master(parameters[name], found)) is not None:
                masters.found[name] = master
            elif len({tuple(reader.weight().shape) for reader in found}) > 1:
                masters.kept[name] = "it is read with its axes as they are and exchanged, in different codes"
            else:
                quantizers = ", ".join(sorted({type(reader.quantizer).__name__ for reader in found}))
                masters.kept[name] = f"{quantizers} does not return the codes of its own values"
    return masters


def _is_read_in_float(model: nn.Module, name: str, readers: list[nn.Module]) -> bool:
    parameter = model.get_parameter(name)
    aliases = {n for n, p in model.named_parameters(remove_duplicate=False) if p is parameter}
    captured = installed_graph(model)
    if captured is not None and any(n.op == "get_attr" and str(n.target) in aliases for n in captured[0].nodes):
        return True
    around = {id(m) for reader in readers for m in _with_lender(reader)}
    owners = [model.get_submodule(alias.rpartition(".")[0]) for alias in aliases]
    return any(id(owner) not in around for owner in owners)


def _with_lender(reader: nn.Module) -> list[nn.Module]:
    """The module, what is inside it, and the module whose parameters it borrows."""
    return [*reader.modules(), *vars(reader).get("lender", ())]


def _master(parameter: nn.Parameter, readers: list[WeightReader]) -> Master | None:
    """How codes stand for the parameter; None if they cannot."""
    expected = [reader.reads() for reader in readers]
    original = parameter.data
    for master in _candidates(readers, [codes for codes, _ in expected], original):
        value = master.value().to(original.dtype)
        if value.shape != original.shape:
            continue
        try:
            parameter.data = value
            found = [reader.reads() for reader in readers]
        finally:
            parameter.data = original
            for reader in readers:
                reader.reads()  # some quantizers keep the scale of the weight that they saw last
        if all(map(_equal, found, expected)):
            return master
    return None


def _candidates(readers: list[WeightReader], codes: list[Tensor], parameter: Tensor) -> list[Master]:
    quantizers = [reader.quantizer for reader in readers]
    found = [Master(quantizers[:1], codes[:1])]
    if isinstance(first := quantizers[0], WeightStatisticsQuantizer):
        found.append(Master(quantizers[:1], codes[:1], shift=_shift(first, codes[0])))
    if len({tuple(c.shape) for c in codes}) == 1 < len(codes):  # not where a reader has the axes exchanged
        found.append(Master(quantizers, codes))
    if parameter.ndim == 2:
        found += [Master(m.quantizers, m.codes, True, m.shift) for m in found]
    return found


def _shift(quantizer: WeightStatisticsQuantizer, codes: Tensor) -> Tensor:
    """What to add to one weight of each row, so that its scale, as torch adds it up, is the quantizer's to the bit."""
    wanted = quantizer.qparams().scale.clone()
    shift = torch.zeros_like(wanted)
    for step in STEPS:
        rows = quantizer.spec.granularity.rows(Master([quantizer], [codes], shift=shift).value())
        shift = shift + step * (wanted - quantizer.scale_of(rows)) * (rows != 0).sum(dim=1)
    return shift


def _common_value(quantizers: list[Quantizer], codes: list[Tensor]) -> Tensor:
    """The middle of what all these codes stand for: of the values that quantizer i rounds to code i, for every i."""
    lows, highs = [], []
    for quantizer, code in zip(quantizers, codes, strict=True):
        code, grid = code.float(), quantizer.spec.grid
        beyond = float(1 << grid.bits)
        lows.append(quantizer.dequantize(code - torch.where(code <= grid.qmin, beyond, 0.5)))
        highs.append(quantizer.dequantize(code + torch.where(code >= grid.qmax, beyond, 0.5)))
    low, high = torch.stack(lows).amax(dim=0), torch.stack(highs).amin(dim=0)
    return (low + high) / 2


def _equal(a: tuple[Tensor, Tensor], b: tuple[Tensor, Tensor]) -> bool:
    return torch.equal(a[0], b[0]) and torch.equal(a[1], b[1])


def describe_masters(masters: Mapping[str, Master], names: Mapping[Quantizer, str]) -> dict[str, Any]:
    """What the manifest says of each, beside its codes, which are named after it: "NAME" and "NAME#1", ..."""
    described = {}
    for name, master in masters.items():
        entry: dict[str, Any] = {"by": [names[q] for q in master.quantizers]}
        if master.transposed:
            entry["transposed"] = True
        if master.shift is not None:
            entry["shift"] = True
        described[name] = entry
    return described
