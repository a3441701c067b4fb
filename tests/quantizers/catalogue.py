"""Every quantizer of `configs/quantizer/`, in every combination that it accepts: a new YAML needs no edit elsewhere."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

import numpy as np
import torch
import yaml
from torch import Tensor

from qat import Mode, TensorRule
from qat.quantizers import Quantizer, ScaledFloat
from tests.oracles import fake_quantize as oracle
from tests.oracles import floating_point
from tests.paths import CONFIGS

CONFIGS = CONFIGS / "quantizer"
PARTS = {path.stem: yaml.safe_load(path.read_text()) for path in sorted(CONFIGS.glob("*.yaml"))}
SHAPE = (4, 3, 2, 2)
LAYOUTS = {
    "activation": ({"granularity": "per_tensor"}, (), oracle.per_tensor),
    "per_tensor": ({"granularity": "per_tensor"}, SHAPE, oracle.per_tensor),
    "per_channel": ({"granularity": "per_channel"}, SHAPE, oracle.per_channel),
    "per_group": ({"granularity": "per_group", "group_size": 6}, SHAPE, lambda shape: oracle.per_group(shape, 6)),
}
FORMS = {
    "signed": {"signed": True, "narrow": True},
    "full": {"signed": True, "narrow": False},
    "unsigned": {"signed": False},
    "affine": {"symmetric": False},
}
BITS = (4, 2, 8, 6)
OF_FORMATS = {name: bits for name, bits in floating_point.BITS.items() if name in PARTS}
"""Quantizers whose levels are those of a floating-point format -> its bits."""


@dataclass(frozen=True)
class Case:
    """One quantizer as a policy would build it."""

    name: str
    layout: str = "activation"
    bits: int = 4
    form: str = "signed"

    def __str__(self) -> str:
        return f"{self.name}-{self.layout}-{self.bits}-{self.form}"

    @property
    def rule(self) -> TensorRule:
        options = {**LAYOUTS[self.layout][0], **FORMS[self.form]}
        return TensorRule(self.bits, quantizer=PARTS[self.name], observer="MinMax", **options)

    def build(self) -> Quantizer:
        return self.rule.build(LAYOUTS[self.layout][1])

    def calibrated(self, on: Tensor) -> Quantizer:
        return calibrate(self.build(), on)


def calibrate(quantizer: Quantizer, on: Tensor) -> Quantizer:
    quantizer.mode = Mode.OBSERVE
    quantizer(on)
    quantizer.finish_observing()
    quantizer.mode = Mode.QUANTIZE
    return quantizer


def _refusal(case: Case) -> str:
    try:
        case.build()
    except ValueError as error:
        return str(error)
    return ""


def _worth_a_test(case: Case) -> bool:
    """Every form at its usual bits, for activations and weights per channel; of the rest what differs."""
    if case.name in OF_FORMATS and (case.layout == "activation" or case.bits != OF_FORMATS[case.name]):
        return False  # in tests/quantizers/test_scaled_float.py
    usual = case.bits == {"ternary": 2, "binary": 2, "dynamic": 8, "fp8_static": 8, **OF_FORMATS}.get(case.name, 4)
    if case.layout not in ("activation", "per_channel"):  # other views of the same
        return usual and case.form in ("signed", "affine")
    return usual or (case.bits != 6 and case.form == ("unsigned" if case.layout == "activation" else "signed"))


OF_TOKENS = {"dynamic_per_token"}
"""No scale of its own: tests/export/test_dynamic_onnx.py has its oracle."""
_ALL = [
    case
    for values in product([name for name in PARTS if name not in OF_TOKENS], LAYOUTS, BITS, FORMS)
    if _worth_a_test(case := Case(*values))
]
REFUSED = {case: message for case in _ALL if (message := _refusal(case))}
CASES = [case for case in _ALL if case not in REFUSED]
ONE_OF_EACH = [next((c for c in CASES if c.name == name), Case(name)) for name in PARTS if name not in OF_TOKENS]
WEIGHTS = [c for name in PARTS for c in [c for c in CASES if c.name == name and c.layout == "per_channel"][:1]]
ACTIVATIONS = [c for c in CASES if c.layout == "activation" and c.form == "unsigned" and c.bits == 4]


def data() -> Tensor:
    return torch.randn(SHAPE) * torch.tensor([0.1, 1.0, 3.0, 20.0])[:, None, None, None]


def on_grid(quantizer: Quantizer, y: Tensor, layout: str) -> bool:
    """Whether y is some allowed code times its scale, in float32, by the numpy oracle's numbering."""
    shared = LAYOUTS[layout][2](tuple(y.shape))
    scale, zero_point = (p.numpy() for p in quantizer.qparams())
    grid = quantizer.spec.grid
    if isinstance(quantizer, ScaledFloat):
        size = getattr(quantizer.spec.granularity, "size", None)
        shared = floating_point.blocks(tuple(y.shape), size) if size in (16, 32) else shared
        allowed = scale[shared][..., None] * floating_point.values(quantizer.element)
        return bool((allowed == y.detach().numpy()[..., None]).any(axis=-1).all())
    codes = np.arange(grid.qmin, grid.qmax + 1)
    allowed = (codes - zero_point[shared][..., None]).astype(np.float32) * scale[shared][..., None]
    return bool((allowed == y.detach().numpy()[..., None]).any(axis=-1).all())


def assert_float32_maths(quantizer: Quantizer, x: Tensor) -> None:
    """Under bfloat16 autocast values and gradients are those of float32; of a bfloat16 x, those of its float32 values."""

    def gradients(values: Tensor) -> list[Tensor]:
        quantizer.zero_grad()
        leaf = values.clone().requires_grad_()
        y = quantizer(leaf)
        y.backward(torch.ones_like(y))
        return [y.detach(), leaf.grad, *(p.grad.clone() for p in quantizer.parameters())]

    plain = gradients(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        under = gradients(x)
        half = gradients(x.bfloat16())
    assert all(a.dtype is b.dtype and torch.equal(a, b) for a, b in zip(under, plain, strict=True))
    exact = gradients(x.bfloat16().float())
    assert half[0].dtype is torch.bfloat16
    assert torch.equal(half[0], exact[0].bfloat16())
    assert torch.equal(half[1], exact[1].bfloat16())
    torch.testing.assert_close(half[2:], exact[2:])
    assert quantizer.qparams().scale.dtype is torch.float32
