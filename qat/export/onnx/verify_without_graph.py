"""`verify` for a network without a graph: its stored weight codes, bit for bit, and its outputs."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from qat.export.onnx.runtime import OnnxRuntimeNetwork, operators, stored_codes
from qat.export.outputs import named_outputs
from qat.export.verification import SiteAgreement, Verification
from qat.integer.weight_only import stored_weights
from qat.transform.batches import positional_arguments


def verify_without_graph(path: str | Path, model: nn.Module, batches: Iterable[Any], tolerance: float) -> Verification:
    """Compare a file with the module that `qat.convert` made of a model without a graph.

    Args:
        path: the file.
        model: the module.
        batches: its inputs: each a tensor, or a sequence that begins with them.
        tolerance: allowed difference of outputs, relative to the largest.

    Raises:
        ValueError: there are no batches, or the file has other weights stored than the module.
        FileNotFoundError: there is no such file.
    """
    network = OnnxRuntimeNetwork(path)
    weights = stored_weights(model)
    found = stored_codes(path, weights)
    if missing := sorted(set(weights) - set(found)):
        raise ValueError(
            f"{path} has no weights of {', '.join(weights[n][0] for n in missing)}: it was written from another model."
        )
    sites: dict[str, SiteAgreement] = {}
    for name, codes in found.items():
        label, weight = weights[name]
        site = sites[label] = SiteAgreement(label, tuple(codes.shape))
        site.compare(weight.weight.cpu().reshape(codes.shape).to(codes.dtype), codes)
    result = Verification(operators=operators(path))
    same = answers = 0
    for batch in batches:
        inputs = positional_arguments(model, batch)
        with torch.no_grad():
            expected = named_outputs(model.eval()(*inputs))
        results = network(*inputs)
        outputs = results if isinstance(results, tuple) else (results,)
        for (name, ours), theirs in zip(expected.items(), outputs, strict=True):
            label = f"{name} (within {tolerance:g} of the largest)"
            sites.setdefault(label, SiteAgreement(label, tuple(ours.shape[1:]))).compare(ours.cpu(), theirs, tolerance)
        first = next(iter(expected.values())).cpu()
        agree = first.argmax(-1) == outputs[0].argmax(-1)
        same, answers, result.images = same + int(agree.sum()), answers + agree.numel(), result.images + len(inputs[0])
    if not result.images:
        raise ValueError("nothing was verified: batches is empty.")
    result.sites = list(sites.values())
    result.codes_compared = sum(s.codes_compared for s in result.sites)
    result.code_mismatches = sum(s.code_mismatches for s in result.sites)
    result.max_step_difference = max(s.max_step_difference for s in result.sites)
    result.top1_agreement = same / answers
    return result
