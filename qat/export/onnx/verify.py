"""The check before deployment: does the file compute what the integer model computes, code by code?"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from qat.export.onnx.outputs import named_outputs
from qat.export.onnx.runtime import SiteSession, operators, stored_codes
from qat.export.verification import SiteAgreement, Verification
from qat.integer import IntegerModel
from qat.integer.layers import DynamicLayer, IntegerConv, WeightOnlyLayer
from qat.integer.modules import IntegerModule
from qat.transform.batches import positional_arguments
from qat.transform.calibrate import check_batches
from qat.transform.operation_kind import OperationKind, kind_of

FLOAT_TOLERANCE = 1e-5
"""Allowed difference of float sums in another order, relative to the largest output."""


def verify(path: str | Path, integer: nn.Module, batches: Iterable[Tensor | Sequence[Tensor]]) -> Verification:
    """Run a file in ONNX Runtime, all optimisations on, beside the integer model, and compare every site.

    Args:
        path: the file that `qat.export_onnx` wrote.
        integer: the result of `qat.convert`.
        batches: model inputs: each a tensor, or a sequence that begins with them (labels are ignored).

    Raises:
        ValueError: this is not an integer model, there are no batches, or the file's sites are not those of the model.
        FileNotFoundError: there is no such file.
    """
    if not isinstance(integer, IntegerModel):
        raise ValueError(f"{type(integer).__name__} is not an integer model: pass the result of qat.convert(prepared).")
    check_batches(batches)
    session = _open(path, integer)
    sites: dict[str, SiteAgreement] = {}

    def compare(name: str, ours: Tensor, theirs: Tensor, tolerance: float = 0.0) -> None:
        site = sites.setdefault(name, SiteAgreement(name, tuple(ours.shape[1:])))
        site.compare(ours.cpu(), theirs, tolerance)

    weights = {n: m.weight for n, m in integer.named_modules() if isinstance(m, WeightOnlyLayer)}
    for name, stored in stored_codes(path, weights).items():
        compare(f"{name}.weight", weights[name].reshape(stored.shape), stored)
    in_float = any(_computes_in_float(m) for m in integer.modules()) or _ends_in_float(integer)
    tolerance = FLOAT_TOLERANCE if in_float else 0.0
    within = f" (within {tolerance:g} of the largest)" if tolerance else ""
    result = Verification(operators=operators(path))
    same_answers = answers = 0
    integer.eval()
    for batch in batches:
        inputs = positional_arguments(integer, batch)
        with torch.no_grad():
            returned, expected_codes = integer.codes(*inputs)
        outputs, codes = session(*inputs)
        for name, expected in expected_codes.items():
            compare(name, expected, codes[name])
        expected_outputs = named_outputs(returned)
        for (name, expected), output in zip(expected_outputs.items(), outputs, strict=True):
            compare(name + within, expected, output, tolerance)
        result.images += len(inputs[0])
        same = _predictions(next(iter(expected_outputs.values())).cpu()) == _predictions(outputs[0])
        same_answers, answers = same_answers + int(same.sum()), answers + same.numel()
    if not result.images:
        raise ValueError("nothing was verified: batches is empty.")
    result.sites = list(sites.values())
    result.codes_compared = sum(s.codes_compared for s in result.sites)
    result.code_mismatches = sum(s.code_mismatches for s in result.sites)
    result.max_step_difference = max(s.max_step_difference for s in result.sites)
    result.top1_agreement = same_answers / answers
    return result


def _open(path: str | Path, integer: IntegerModel) -> SiteSession:
    """A session that also returns the codes of every site of the model."""
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path} does not exist: write it with qat.export_onnx(integer, example_inputs, path).")
    names = [n for n, m in integer.named_modules() if isinstance(m, IntegerModule) and m.makes_codes]
    session = SiteSession(path, names)
    if missing := sorted(set(names) - set(session.sites)):
        raise ValueError(f"{path} has no tensor for the sites {', '.join(missing)}: it was written from another model.")
    return session


def _computes_in_float(module: nn.Module) -> bool:
    """Whether the runtime computes this layer as float sums: it has no integer kernel for a convolution with float output."""
    unfused = isinstance(module, IntegerConv) and module.output is None
    return unfused or isinstance(module, WeightOnlyLayer | DynamicLayer)


def _ends_in_float(model: IntegerModel) -> bool:
    """Whether an output of the network comes from an operation that was left in float."""
    results = [n for node in model.graph.nodes if node.op == "output" for n in node.all_input_nodes]
    while moved := [n for n in results if kind_of(model, n) is OperationKind.SAME]:
        results = [n for n in results if n not in moved] + [n.all_input_nodes[0] for n in moved]
    return not all(
        n.op == "call_module" and isinstance(model.get_submodule(str(n.target)), IntegerModule) for n in results
    )


def _predictions(output: Tensor) -> Tensor:
    """The class with the largest output, per sample and pixel (if there are any); for (N,), whether it is positive."""
    return output.argmax(dim=1) if output.ndim > 1 else output > 0
