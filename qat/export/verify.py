"""The gate before deployment: does the file compute what the integer model computes, code by code?"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from qat.export.onnx.outputs import named_outputs
from qat.export.runtime import SiteSession, operators, stored_codes
from qat.integer import IntegerModel
from qat.integer.modules import DynamicLayer, IntegerConv, IntegerModule, WeightOnlyLayer
from qat.transform.calibrate import arguments, check_batches
from qat.transform.plan import Kind, kind_of

FLOAT_TOLERANCE = 1e-5
"""Of the largest output: how far float32 sums of another order may lie apart."""


@dataclass
class SiteAgreement:
    """One tensor of the network. shape: of one sample. max_step_difference: in codes (outputs: relative to the largest)."""

    name: str
    shape: tuple[int, ...]
    codes_compared: int = 0
    code_mismatches: int = 0
    max_step_difference: float = 0.0


@dataclass
class Verification:
    """The result of `verify`.

    codes_compared, code_mismatches: over all sites and the network's outputs, which are compared bit for bit. Of layers
    that are quantized in their weight alone the stored weight codes are compared. Where such layers, dynamic ones, or a
    convolution whose output has no codes make floats, outputs may differ by FLOAT_TOLERANCE of the largest; the name of the
    output then says so. top1_agreement: fraction of samples (of pixels, where there are any) with the same largest output.
    max_step_difference: largest difference of two codes. images: samples seen. operators: of the graph after ONNX Runtime's
    optimisations.
    """

    codes_compared: int = 0
    code_mismatches: int = 0
    top1_agreement: float = 0.0
    max_step_difference: float = 0.0
    images: int = 0
    operators: dict[str, int] = field(default_factory=dict)
    sites: list[SiteAgreement] = field(default_factory=list)

    @property
    def exact(self) -> bool:
        """Whether not one code differs."""
        return self.codes_compared > 0 and self.code_mismatches == 0


def verify(path: str | Path, integer: nn.Module, batches: Iterable[Tensor | Sequence[Tensor]]) -> Verification:
    """Run the file in ONNX Runtime, all optimisations on, beside the integer model, and compare every site.

    Args:
        path: the file that `qat.export_onnx` wrote. integer: the result of `qat.convert`.
        batches: model inputs: a tensor each, or a sequence that begins with them (labels are left over).

    Raises:
        ValueError: not an integer model, no batches, or a file whose sites are not those of the model. FileNotFoundError:
            no such file.
    """
    if not isinstance(integer, IntegerModel):
        raise ValueError(f"{type(integer).__name__} is no integer model: pass the result of qat.convert(prepared).")
    check_batches(batches)
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path} does not exist: write it with qat.export_onnx(integer, example_inputs, path).")
    names = [n for n, m in integer.named_modules() if isinstance(m, IntegerModule) and m.makes_codes]
    running = SiteSession(path, names)
    if missing := sorted(set(names) - set(running.sites)):
        raise ValueError(f"{path} has no tensor for the sites {', '.join(missing)}: it was written from another model.")
    sites: dict[str, SiteAgreement] = {}
    result = Verification(operators=operators(path))
    weights = {n: m.weight for n, m in integer.named_modules() if isinstance(m, WeightOnlyLayer)}
    for name, stored in stored_codes(path, weights).items():
        _compare(sites, f"{name}.weight", weights[name].cpu().reshape(stored.shape), stored)
    in_float = any(_computes_in_float(m) for m in integer.modules()) or _ends_in_float(integer)
    tolerance = FLOAT_TOLERANCE if in_float else 0.0
    agreeing = answers = 0
    integer.eval()
    for batch in batches:
        inputs = arguments(integer, batch)
        with torch.no_grad():
            expected, expected_codes = integer.codes(*inputs)
        outputs, codes = running(*inputs)
        for name, expected_code in expected_codes.items():
            _compare(sites, name, expected_code.cpu(), codes[name])
        results = named_outputs(expected)
        for (name, ours), theirs in zip(results.items(), outputs, strict=True):
            within = f" (within {tolerance:g} of the largest)" if tolerance else ""
            _compare(sites, name + within, ours.cpu(), theirs, tolerance)
        result.images += len(inputs[0])
        same = _answers(next(iter(results.values())).cpu()) == _answers(outputs[0])
        agreeing, answers = agreeing + int(same.sum()), answers + same.numel()
    if not result.images:
        raise ValueError("nothing was verified: batches is empty.")
    result.sites = list(sites.values())
    result.codes_compared = sum(s.codes_compared for s in result.sites)
    result.code_mismatches = sum(s.code_mismatches for s in result.sites)
    result.max_step_difference = max(s.max_step_difference for s in result.sites)
    result.top1_agreement = agreeing / answers
    return result


def _computes_in_float(module: nn.Module) -> bool:
    """A layer of float sums, in the runtime's order: for a convolution without codes behind it there is no integer kernel."""
    unfused = isinstance(module, IntegerConv) and module.output is None
    return unfused or isinstance(module, WeightOnlyLayer | DynamicLayer)


def _ends_in_float(model: IntegerModel) -> bool:
    """Whether a result comes from an operation that was left in float, as the network's last one."""
    results = [n for node in model.graph.nodes if node.op == "output" for n in node.all_input_nodes]
    while moved := [n for n in results if kind_of(model, n) is Kind.SAME]:
        results = [n for n in results if n not in moved] + [n.all_input_nodes[0] for n in moved]
    return not all(
        n.op == "call_module" and isinstance(model.get_submodule(str(n.target)), IntegerModule) for n in results
    )


def _answers(output: Tensor) -> Tensor:
    """Which class is the largest, for each sample, and pixel if there are any; of (N,), whether it is positive."""
    return output.argmax(dim=1) if output.ndim > 1 else output > 0


def _compare(sites: dict[str, SiteAgreement], name: str, ours: Tensor, theirs: Tensor, tolerance: float = 0.0) -> None:
    site = sites.setdefault(name, SiteAgreement(name, tuple(ours.shape[1:])))
    site.codes_compared += ours.numel()
    different = ours != theirs
    if tolerance:
        different = ~((ours - theirs).abs() <= tolerance * ours.abs().max())
    if bool(different.any()):
        site.code_mismatches += int(different.sum())
        distance = (ours.double() - theirs.double()).abs().max().item()
        largest = 1.0 if not ours.is_floating_point() else ours.abs().max().item() or 1.0
        site.max_step_difference = max(site.max_step_difference, distance / largest)
