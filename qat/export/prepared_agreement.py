"""Does the integer model compute what was trained? Its sites against those of the prepared network, in decibels."""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from qat.capture import copy_model
from qat.contexts import training_mode
from qat.export.decisions import decisions
from qat.export.outputs import named_outputs
from qat.export.verification import SQNR_ALARM
from qat.integer import arithmetic, convert
from qat.integer.fingerprint import first_difference
from qat.integer.modules import IntegerModule
from qat.integer.order import OneOrder
from qat.quantizers import Mode
from qat.transform.mode import mode, quantizers


@dataclass
class _Power:
    """Sums of squares of a signal and of its error; `wrong` says why there is no error to square."""

    signal: float = 0.0
    noise: float = 0.0
    wrong: str = ""

    def add(self, wanted: Tensor, got: Tensor) -> None:
        if wanted.shape != got.shape:
            self.wrong = f"the shape {tuple(got.shape)}, not {tuple(wanted.shape)}"
            return
        dtype = torch.promote_types(wanted.dtype, torch.float32)
        wanted, got = wanted.detach().to(dtype), got.detach().to(wanted.device, dtype)
        signal, noise = _square_sum(wanted), _square_sum(wanted - got)
        if not math.isfinite(signal + noise):  # equal infinities are equal, and NaN is none
            wanted, got = wanted.double(), got.double()
            signal = _square_sum(wanted[wanted.isfinite()])
            noise = _square_sum((wanted - got)[wanted != got])
        self.signal, self.noise = self.signal + signal, self.noise + noise

    def join(self, other: _Power) -> None:
        self.signal, self.noise = self.signal + other.signal, self.noise + other.noise
        self.wrong = self.wrong or other.wrong

    @property
    def sqnr_db(self) -> float:
        """Signal to noise in decibels; infinite without noise, -infinite without a signal, or if shapes or NaN forbid it."""
        if self.wrong or not math.isfinite(self.noise):
            return -math.inf
        if self.noise == 0:
            return math.inf
        return 10 * math.log10(self.signal / self.noise) if self.signal else -math.inf


def _square_sum(x: Tensor) -> float:
    """The sum of squares, in float64, without a copy of `x`."""
    return float(torch.linalg.vector_norm(x, dtype=torch.float64)) ** 2


class PreparedAgreement:
    """Runs the prepared network in evaluation beside the integer model, batch by batch.

    Args:
        prepared: the network that `qat.convert` was given.
        integer: the result.

    Raises:
        ValueError: the network has no quantizers.
    """

    def __init__(self, prepared: nn.Module, integer: nn.Module) -> None:
        activations = [q for q in quantizers(prepared).values() if not q.is_weight]
        if not quantizers(prepared):
            raise ValueError(
                f"{type(prepared).__name__} has no quantizers: pass the prepared network that was converted, or nothing."
            )
        self.prepared, self.integer = prepared, integer
        modules = {n: m for n, m in integer.named_modules() if isinstance(m, IntegerModule) and m.makes_codes}
        self._encodings = {name: m.output for name, m in modules.items()}
        named = {q.label.replace(".", "_"): q for q in activations}
        labels = {name: name if name in named else name.rstrip("_") for name in modules}  # convert avoids taken names
        self._quantizers = {name: named[label] for name, label in labels.items() if label in named}
        self._power: dict[str, _Power] = {}
        self._restarted: dict[str, _Power] = {}
        self._dynamic: Mapping[str, Tensor] = {}
        self.samples = self.changes = 0

    def see(
        self,
        inputs: Sequence[Tensor],
        codes: Mapping[str, Tensor],
        outputs: Mapping[str, Tensor],
        dynamic: Mapping[str, Tensor] | None = None,
    ) -> None:
        """Compare all sites, outputs and decisions of one batch with the integer model's.

        dynamic: what the codes of dynamic sites stand for, which have no encoding.

        With few bits a code that falls on the other side of a rounding edge moves many behind it. So a batch with a tensor
        below `SQNR_ALARM` runs again with the integer model's codes in all sites: what still differs is each segment's own.
        """
        self._dynamic = dynamic or {}
        batch: dict[str, _Power] = {}
        self._see_decisions(self._run(inputs, codes, outputs, batch, restarted=False), outputs)
        _add(self._power, batch)
        if any(power.sqnr_db < SQNR_ALARM for power in batch.values()):
            own: dict[str, _Power] = {}
            self._run(inputs, codes, outputs, own, restarted=True)
            _add(self._restarted, own)

    def _run(
        self,
        inputs: Sequence[Tensor],
        codes: Mapping[str, Tensor],
        outputs: Mapping[str, Tensor],
        power: dict[str, _Power],
        restarted: bool,
    ) -> dict[str, Any]:
        """The prepared network's outputs; `restarted`: computed behind each site from the integer model's codes."""

        def compare(name: str, wanted: Tensor) -> Tensor | None:
            encoding = self._encodings[name]
            if name in self._dynamic:
                got = self._dynamic[name]
            elif name not in codes or encoding is None:
                return None
            else:
                got = arithmetic.dequantize(codes[name], encoding)
            power.setdefault(name, _Power()).add(wanted, got)
            return got.to(wanted) if restarted and got.shape == wanted.shape else None

        hooks = [
            quantizer.register_forward_hook(lambda _m, _i, out, name=name: compare(name, out))
            for name, quantizer in self._quantizers.items()
        ]
        try:
            with torch.no_grad(), OneOrder(), training_mode(self.prepared, False), mode(self.prepared, Mode.QUANTIZE):
                returned = dict(zip(outputs, named_outputs(self._call(inputs)).values(), strict=True))
        finally:
            for hook in hooks:
                hook.remove()
        for name, wanted in returned.items():
            if wanted.is_floating_point():
                power.setdefault(name, _Power()).add(wanted, outputs[name])
        return returned

    def _call(self, inputs: Sequence[Tensor]) -> Any:
        """The prepared network of the integer model's arguments, by name: its forward may have others between them."""
        arguments = inspect.signature(self.integer.forward).bind(*inputs).arguments
        parameters = inspect.signature(self.prepared.forward).parameters.values()
        named = {p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
        return self.prepared(**arguments) if arguments.keys() <= named else self.prepared(*inputs)

    def _see_decisions(self, wanted: Mapping[str, Tensor], got: Mapping[str, Tensor]) -> None:
        ours, its = (decisions(next(iter(x.values())).cpu()) for x in (wanted, got))
        self.samples += ours.numel()
        self.changes += int((ours != its).sum()) if ours.shape == its.shape else ours.numel()

    @property
    def prediction_changes(self) -> float:
        """Fraction of decisions that differ."""
        return self.changes / self.samples if self.samples else 0.0

    def sqnr_db(self) -> dict[str, float]:
        """Site or output -> decibels, in the order in which they are computed."""
        return {name: power.sqnr_db for name, power in self._power.items()}

    def alarm(self) -> str:
        """A sentence that names the first tensor that is not what was trained; "" if there is none."""
        wrong = [
            n for n, p in self._power.items() if p.sqnr_db < SQNR_ALARM and self._restarted[n].sqnr_db < SQNR_ALARM
        ]
        if not wrong:
            return self._converted_from_another()
        power = self._restarted[wrong[0]]
        found = f"has {power.wrong}" if power.wrong else f"is {power.sqnr_db:.1f} dB"
        return (
            f"The integer model does not compute what was trained: its {wrong[0]} {found} beside the prepared network's, from "
            f"the same codes, where {SQNR_ALARM:g} dB are the least that rounding explains; it is the first of {len(wrong)} "
            "such tensors."
        )

    def _converted_from_another(self) -> str:
        """A sentence, if the prepared network gives another integer model: it has changed since, if only by little."""
        device = next(self.prepared.parameters()).device
        found = ""
        for place in dict.fromkeys((device, torch.device("cpu"))):  # scales may differ by a bit between devices
            source = self.prepared if place == device else copy_model(self.prepared).to(place)
            if not (found := first_difference(self.integer, convert(source))):
                return ""
        return (
            f"The integer model was not converted from the prepared network as it is now: its {found} differs; convert and "
            "export it again, or pass the network as it was."
        )


def _add(total: dict[str, _Power], batch: Mapping[str, _Power]) -> None:
    for name, power in batch.items():
        total.setdefault(name, _Power()).join(power)
