"""Does the integer model compute what was trained? Its sites against those of the prepared network, in decibels."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from qat.contexts import training_mode
from qat.export.verification import SQNR_ALARM
from qat.integer import IntegerModel, arithmetic
from qat.integer.modules import IntegerModule
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
        wanted, got = wanted.detach().double(), got.detach().to(wanted.device).double()
        both = wanted != got  # equal infinities are equal
        self.signal += wanted[wanted.isfinite()].square().sum().item()
        self.noise += (wanted - got)[both].square().sum().item()

    @property
    def sqnr_db(self) -> float:
        """Signal to noise in decibels; infinite without noise, -infinite without a signal, or if shapes or NaN forbid it."""
        if self.wrong or not math.isfinite(self.noise):
            return -math.inf
        if self.noise == 0:
            return math.inf
        return 10 * math.log10(self.signal / self.noise) if self.signal else -math.inf


class PreparedAgreement:
    """Runs the prepared network in evaluation beside the integer model, batch by batch.

    Args:
        prepared: the network that `qat.convert` was given.
        integer: the result.

    Raises:
        ValueError: the network has no quantizers.
    """

    def __init__(self, prepared: nn.Module, integer: IntegerModel) -> None:
        activations = [q for q in quantizers(prepared).values() if not q.is_weight]
        if not quantizers(prepared):
            raise ValueError(
                f"{type(prepared).__name__} has no quantizers: pass the prepared network that was converted, or nothing."
            )
        self.prepared = prepared
        modules = {n: m for n, m in integer.named_modules() if isinstance(m, IntegerModule) and m.output is not None}
        self._encodings = {name: m.output for name, m in modules.items()}
        named = {q.label.replace(".", "_"): q for q in activations}
        labels = {name: name if name in named else name.rstrip("_") for name in modules}  # convert avoids taken names
        self._quantizers = {name: named[label] for name, label in labels.items() if label in named}
        self._power: dict[str, _Power] = {}
        self.samples = self.changes = 0

    def see(self, inputs: Sequence[Tensor], codes: Mapping[str, Tensor]) -> object:
        """Compare all sites with the integer model's codes; returns what the prepared network returns."""

        def compare(name: str, wanted: Tensor) -> None:
            encoding = self._encodings[name]
            if name in codes and encoding is not None:
                self._power.setdefault(name, _Power()).add(wanted, arithmetic.dequantize(codes[name], encoding))

        hooks = [
            quantizer.register_forward_hook(lambda _m, _i, out, name=name: compare(name, out))
            for name, quantizer in self._quantizers.items()
        ]
        try:
            with torch.no_grad(), training_mode(self.prepared, False), mode(self.prepared, Mode.QUANTIZE):
                return self.prepared(*inputs)
        finally:
            for hook in hooks:
                hook.remove()

    def see_outputs(self, wanted: Mapping[str, Tensor], got: Mapping[str, Tensor]) -> None:
        """Compare outputs by name."""
        for name, of_prepared in wanted.items():
            if of_prepared.is_floating_point() and name in got:
                self._power.setdefault(name, _Power()).add(of_prepared, got[name])

    def see_predictions(self, wanted: Tensor, got: Tensor) -> None:
        """Count decisions that differ."""
        self.samples += wanted.numel()
        self.changes += int((wanted != got).sum()) if wanted.shape == got.shape else wanted.numel()

    @property
    def prediction_changes(self) -> float:
        """Fraction of decisions that differ."""
        return self.changes / self.samples if self.samples else 0.0

    def sqnr_db(self) -> dict[str, float]:
        """Site or output -> decibels, in the order in which they are computed."""
        return {name: power.sqnr_db for name, power in self._power.items()}

    def alarm(self) -> str:
        """A sentence that names the first tensor that is not what was trained; "" if there is none."""
        for name, power in self._power.items():
            if power.sqnr_db < SQNR_ALARM:
                found = f"has {power.wrong}" if power.wrong else f"is {power.sqnr_db:.1f} dB"
                return (
                    f"The integer model does not compute what was trained: its {name} {found} "
                    f"beside the prepared network's, where {SQNR_ALARM:g} dB are the least that rounding explains; it is the "
                    f"first of {sum(p.sqnr_db < SQNR_ALARM for p in self._power.values())} such tensors."
                )
        return ""
